// One example of critique and revision, round by round: what was said, what changed, and how often it helps at all.
boot("revision", async (stage, data, root) => {
  const chains = await unpack(data.chains), { flags, shares } = data, kinds = Object.keys(flags);
  const used = kinds.filter((k, f) => shares[k] || chains.some((c) => c.rounds.some((r) => r[0][f] !== null)));
  const rounds = Math.max(...chains.map((c) => c.rounds.length), ...Object.values(shares).map((s) => s.length));
  const tone = { harm: "ab-bad", help: "ab-good", evasive: "ab-amber" };
  const [pickLabel, pick] = chooser("Example", chains.map((c, i) => `${i + 1}. ${c.name}`), show);
  const [slideLabel, slide] = slider("Round", 0, 0, go);
  const mark = h("input", { type: "checkbox", checked: true, onchange: show });
  const button = (text, by) => h("button", { type: "button", text, onclick: () => go(at + by) });
  const back = button("‹ Back", -1), next = button("Next ›", 1), said = h("output", { role: "status" });
  const card = h("div", { class: "ab-card", tabindex: 0, role: "group", "aria-label": "The example; left and right arrow keys change the round" });
  const grid = h("table", { class: "ab-rounds" });
  let at = 0;
  const chain = () => chains[Math.max(0, pick.selectedIndex)];
  const tags = { "=": "span", "-": "del", "+": "ins" };
  const turn = ([role, label, parts]) => h("div", { class: "ab-turn", "data-role": role }, h("b", { text: label }), h("span", {},
    parts.filter(([sign]) => mark.checked || sign !== "-").map(([sign, text]) => h(mark.checked ? tags[sign] : "span", { text }))));
  const yes = (v) => (v === null || v === undefined ? "unknown" : v ? "yes" : "no");
  const sign = (v, k) => h("span", { class: v ? tone[k] : "ab-mute", role: "img", "aria-label": yes(v), title: yes(v), text: { yes: "●", no: "○", unknown: "–" }[yes(v)] });
  function bar(share, k) {
    if (!share) return h("span", { class: "ab-mute", text: "–" });
    const [v, lo, hi, n] = share, text = `${flags[k]}: ${Math.round(100 * v)} % [${Math.round(100 * lo)}, ${Math.round(100 * hi)}] of ${n}`;
    return [h("span", { text: ` ${Math.round(100 * v)} %` }), s("svg", { class: tone[k], viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": text },
      s("title", { text }), s("rect", { class: "ab-rail", x: 0, y: 1, width: 100, height: 8 }), s("rect", { class: "ab-share", x: 0, y: 1, width: 100 * v, height: 8 }),
      s("line", { class: "ab-range", x1: 100 * lo, x2: 100 * hi, y1: 5, y2: 5 }))];
  }
  function table() {
    const has = chain().rounds, here = (i) => (i === at ? { "aria-current": "step" } : {});
    const heads = Array.from({ length: rounds }, (_, i) => h("th", { scope: "col", ...here(i) }, i < has.length
      ? h("button", { type: "button", "aria-label": `round ${i}`, text: i, onclick: () => { go(i); grid.querySelectorAll("button")[i].focus(); } }) : String(i)));
    const row = (k) => h("tr", {}, h("th", { scope: "row", text: flags[k] }), Array.from({ length: rounds }, (_, i) =>
      h("td", here(i), sign(has[i] && has[i][0][kinds.indexOf(k)], k), shares[k] ? bar(shares[k][i], k) : [])));
    grid.replaceChildren(h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "round" }), heads)), h("tbody", {}, used.map(row)));
  }
  function show() {
    const { turns, rounds: all } = chain();
    at = Math.max(0, Math.min(all.length - 1, at));
    const [marks, told] = all[at], changed = told[told.length - 1][2], words = (sign) => changed.filter((p) => p[0] === sign).flatMap((p) => p[1].match(/[\p{L}\p{N}'’]+/gu) || []).length;
    card.replaceChildren(...turns.map(turn), ...told.map(turn));
    Object.assign(slide, { max: all.length - 1, value: at });
    slide.setAttribute("aria-valuetext", `round ${at} of ${all.length - 1}`);
    slideLabel.firstChild.textContent = `Round ${at} of ${all.length - 1}`;
    back.setAttribute("aria-disabled", String(at === 0));
    next.setAttribute("aria-disabled", String(at === all.length - 1));
    const known = kinds.flatMap((k, f) => (marks[f] === null ? [] : [`${flags[k]} ${yes(marks[f])}`])).join(", ");
    const [gone, come] = [words("-"), words("+")], same = changed.every((p) => p[0] === "=");
    const what = at === 0 ? "the first reply" : same ? "the revision changed nothing" : `words removed: ${gone}, added: ${come}`;
    said.textContent = `Round ${at}: ${what}.${known ? ` This reply: ${known}.` : ""}`;
    table();
  }
  function go(to) {
    at = Math.max(0, Math.min(chain().rounds.length - 1, to));
    show();
  }
  stage.addEventListener("keydown", (e) => {
    if (e.target === slide || e.target === pick || e.altKey || e.ctrlKey || e.metaKey) return;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: 1e6 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    const held = grid.contains(e.target);
    go(to);
    if (held) grid.querySelectorAll("button")[at].focus();
  });
  show();
  const count = Math.max(0, ...Object.values(shares).flat().map((v) => (v ? v[3] : 0)));
  const legend = `● yes, ○ no in this example${count ? `; bar: share of all ${count} examples, line: its 95 % interval` : ""}. Arrow keys ← → change the round.`;
  stage.append(h("div", { class: "ab-bar" }, chains.length > 1 ? pickLabel : [], h("span", { class: "ab-pair" }, back, next), slideLabel),
    ...(used.length ? [h("div", { class: "ab-scroll" }, grid), h("p", { class: "ab-note", text: legend })] : []), said, card,
    h("label", { class: "ab-row" }, mark, h("span", { text: "mark what changed against the round before" })));
  root.querySelector(".ab-still").remove();
});
