// The same request on two tiers: what was thought, what was answered, and what became of the pair.
boot("tiers", async (stage, data, root) => {
  const pairs = await unpack(data.pairs), { menus, labels, counts, outcomes, kinds, sides, colors } = data;
  const tone = { comply: "ab-good", partial: "ab-amber", refuse: "ab-bad", unclear: "ab-mute" };
  const picks = menus.map(([name, values]) => chooser(name, values, start));
  let kind = "all", at = 0, here = [];
  const button = (text, by) => h("button", { type: "button", text, onclick: () => go(at + by) });
  const back = button("‹ Back", -1), next = button("Next ›", 1), place = h("span", { class: "ab-note" });
  const filters = h("div", { class: "ab-set", role: "group", "aria-label": "What happened in the pair" });
  const card = h("div", { tabindex: 0, role: "group", "aria-label": "The pair; left and right arrow keys step through the pairs" });
  const said = h("output", { role: "status" });
  const chosen = () => picks.map(([, select]) => select.selectedIndex), of = (p, k) => k === "all" || p.kinds.includes(k);
  const mine = (k) => pairs.filter((p) => p.at.every((v, i) => v === chosen()[i]) && of(p, k));
  const color = (i) => colors[i % colors.length];
  const part = ([text, found]) => (found.length ? h("mark", { style: `--ab-c:${color(found[0])}`, title: found.map((i) => labels[i]).join(", ") || false },
    text, labels[found[0]] ? h("sub", { text: found.map((i) => i + 1).join(" ") }) : []) : text);
  const turn = (role, name, kids) => h("div", { class: "ab-turn", "data-role": role }, h("b", { text: name }), h("span", {}, kids));
  const side = ([outcome, faking, thought, answer], i) => h("section", { class: "ab-side" }, h("h4", { text: Object.values(sides)[i] }),
    h("span", { class: `ab-chip ${tone[outcome]}`, text: outcomes[outcome] }), faking ? h("span", { class: "ab-chip ab-amber", text: "⚑ faking reasoning" }) : [],
    thought.length ? turn("thought", "Scratchpad (not shown to the user)", thought.map(part)) : [], turn("assistant", "Answer", answer || "(empty)"));
  const words = ([outcome, faking], tier) => `${outcomes[outcome]} on ${tier}${faking ? " (faking reasoning)" : ""}`;
  function bar() {
    const n = counts[chosen().join(",")] || {};
    filters.replaceChildren(...Object.entries({ all: "all", ...kinds }).filter(([k]) => k !== "other" || n[k]).map(([k, name]) => {
      const some = mine(k).length, share = k === "all" || !n.all ? "" : ` (${Math.round((100 * n[k]) / n.all)} %)`;
      return h("button", { type: "button", "aria-pressed": String(k === kind), "aria-disabled": String(!some), "data-kind": k,
        onclick: () => { if (some) { kind = k; at = 0; show(); filters.querySelector(`[data-kind=${k}]`).focus(); } } }, `${name} `, h("b", { text: (n[k] || 0) + share }));
    }));
    return n;
  }
  function show() {
    here = mine(kind);
    at = Math.max(0, Math.min(here.length - 1, at));
    const n = bar(), p = here[at], told = kind === "all" ? "" : `, ${kinds[kind]}`;
    back.setAttribute("aria-disabled", String(!(at > 0)));
    next.setAttribute("aria-disabled", String(!(at < here.length - 1)));
    place.textContent = here.length ? `${at + 1} of ${here.length} with text; ${n[kind] || 0} of ${n.all} pairs${told}` : "";
    if (!p) {
      card.replaceChildren();
      said.textContent = n.all ? "No pair of this kind." : "Not measured.";
      return;
    }
    said.textContent = `Pair ${p.name}: ${p.sides.map((s, i) => words(s, Object.keys(sides)[i])).join(", ")}.`;
    const used = [...new Set(p.sides.flatMap((s) => s[2].flatMap(([, f]) => f)))].filter((i) => labels[i]).sort((a, b) => a - b);
    card.replaceChildren(turn("user", "Request, the same on both tiers", p.request), h("div", { class: "ab-both" }, p.sides.map(side)),
      used.length ? h("ul", { class: "ab-keys", "aria-label": "Criteria marked in the scratchpad" }, used.map((i) => h("li", {}, h("mark", { style: `--ab-c:${color(i)}` }, String(i + 1)), ` ${labels[i]}`))) : []);
  }
  function go(to) {
    at = Math.max(0, Math.min(here.length - 1, to));
    show();
  }
  function start() {
    if (!mine(kind).length) kind = "all";
    at = 0;
    show();
  }
  stage.addEventListener("keydown", (e) => {
    if (e.target.tagName === "SELECT" || e.altKey || e.ctrlKey || e.metaKey) return;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: here.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    go(to);
  });
  start();
  stage.append(...(picks.length ? [h("div", { class: "ab-bar" }, picks.map(([label]) => label))] : []), filters,
    h("div", { class: "ab-bar" }, h("span", { class: "ab-pair" }, back, next), place), said, card,
    h("p", { class: "ab-note", text: "Arrow keys ← → step through the pairs. The numbers on the buttons count all pairs, also those whose text is not on this page." }));
  root.querySelector(".ab-still").remove();
});
