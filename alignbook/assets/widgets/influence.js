// One query, one estimator, one choice of layers: the sequences at both ends of the ranking, their tokens coloured.
boot("influence", async (stage, data) => {
  const [d, found, heat, layer, tokens] = await Promise.all(["about", "hits", "heat", "layers", "tokens"].map((k) => unpack(data[k])));
  const { estimators, thirds, queries } = d, { unit } = data;
  const heats = heat.split("~"), bars = layer.split("~"), texts = tokens.split("\x1e").map((text) => text.split("\x7f"));
  const read = (far, text, levels) => far === "" ? null : [...text].map((c) => (c === " " ? null : (far * (c.charCodeAt(0) - 79)) / levels));
  const all = found.rank.map((_, i) => ({ i, ...Object.fromEntries(Object.entries(found).map(([k, column]) => [k, column[i]])) }));
  let done = 0;
  const views = d.views.map(([q, e, t, n]) => [q, e, t, all.slice(done, done += n)]);
  const hits = (q, e, t) => views.find((v) => v[0] === q && v[1] === e && v[2] === t)?.[3] || [];
  const minus = (x) => String(x).replace("-", "−");
  const words = (v) => `${v > 0 ? "+" : ""}${minus(num(v))} ${unit}`.trim();
  const about = (v, far, levels) => words(v === null || Math.abs(v) === far ? v : +v.toFixed(Math.max(0, Math.min(20, Math.floor(-Math.log10(far / levels))))));
  const longest = Math.max(...views.map((v) => Math.max(v[3].filter((x) => x.rank > 0).length, v[3].filter((x) => x.rank < 0).length)));
  const [queryLabel, query] = chooser("Query", queries.map((q) => q[0]), show);
  const [estimatorLabel, estimator] = chooser("Estimator", estimators, show);
  const [thirdLabel, third] = chooser("Layers", thirds, show);
  const [countLabel, count] = chooser("At each end", Array.from({ length: longest }, (_, i) => i + 1), show);
  const own = h("input", { type: "checkbox", onchange: show });
  const asked = h("div", { class: "ab-turn" }), ends = h("div", { class: "ab-ends" });
  const said = h("span", { class: "ab-note", role: "status" }), point = "Point at a token, or Tab to a text and use the arrow keys.";
  const value = h("output", { role: "status", text: point }), from = h("span"), to = h("span");
  const color = (v, far) => `rgba(var(${v < 0 ? "--ab-neg" : "--ab-pos"}),${(0.62 * Math.min(1, Math.abs(v) / (far || 1))).toFixed(3)})`;
  const ramp = h("span", { class: "ab-ramp" });
  ramp.style.background = `linear-gradient(90deg,${[-1, -0.5, 0, 0.5, 1].map((v) => color(v, 1)).join(",")})`;

  function colored(list, heat, far, most, name) {  // one Tab stop; arrow keys walk
    const tip = h("span", { class: "ab-tip", "aria-hidden": "true" });
    const spans = list.map((text, i) => {
      const v = heat ? heat[i] : null, node = h("span", { tabindex: i ? -1 : 0, text: text.replace(/\n/g, "⏎\n") });
      if (v === null) return node;
      node.style.background = color(v, far);
      if (Math.abs(v) > far / 2) node.style.borderBottomColor = "currentColor";
      if (v < 0) node.className = "ab-neg";
      return node;
    });
    const box = h("div", { class: "ab-tokens", role: "group", "aria-label": `Text of ${name}; use the arrow keys` }, spans);
    let here = 0;
    const tell = (i) => {
      const v = heat && heat[i] !== null ? about(heat[i], most, d.levels[0]) : "no score";
      value.textContent = `${name}, token ${i + 1} of ${list.length}, “${list[i].trim() || "space"}”: ${v}`;
      tip.textContent = v;
      box.append(tip);
      const left = Math.min(spans[i].offsetLeft, box.clientWidth - tip.offsetWidth);
      Object.assign(tip.style, { left: `${Math.max(0, left)}px`, top: `${spans[i].offsetTop - tip.offsetHeight - 2}px` });
    };
    const walk = (i) => {
      spans[here].tabIndex = -1;
      here = Math.max(0, Math.min(spans.length - 1, i));
      spans[here].tabIndex = 0;
      spans[here].focus();
    };
    spans.forEach((span, i) => {
      span.addEventListener("mouseenter", () => tell(i));
      span.addEventListener("focus", () => tell(i));
      span.addEventListener("click", () => walk(i));
    });
    box.addEventListener("mouseleave", () => tip.remove());
    box.addEventListener("focusout", () => tip.remove());
    box.addEventListener("keydown", (e) => {
      const i = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: spans.length - 1 }[e.key];
      if (i !== undefined) { e.preventDefault(); walk(i); }
    });
    return box;
  }

  function layers(values) {
    const H = 30, far = Math.max(...values.map((v) => Math.abs(v || 0))) || 1, wide = 160 / values.length;
    const peak = values.reduce((best, v, i) => (Math.abs(v || 0) > Math.abs(values[best] || 0) ? i : best), 0);
    const rects = values.map((v, i) => {
      const high = (14 * Math.abs(v || 0)) / far;
      return s("rect", { class: v < 0 ? "ab-below" : "ab-above", x: i * wide + 0.4, width: 0.9 * wide, y: H / 2 - (v < 0 ? 0 : high), height: high },
        s("title", { text: `layer ${i + 1} of ${values.length}: ${about(v, far, d.levels[1])}` }));
    });
    const label = `By layer, lowest first; the largest is layer ${peak + 1} of ${values.length}, ${words(values[peak])}`;
    return h("div", { class: "ab-layers" }, h("span", { text: `layers 1–${values.length}` }), s("svg", { viewBox: `0 0 160 ${H}`, role: "img",
      "aria-label": label }, rects, s("line", { class: "ab-grid", x1: 0, x2: 160, y1: H / 2, y2: H / 2 })));
  }

  function others(hit) {
    const [q, e, t] = [query, estimator, third].map((x) => x.selectedIndex);
    const rank = (name, k) => hit.ranks[name] ?? hits(q, k, t).find((x) => x.doc === hit.doc)?.rank;
    const names = [...new Set([...estimators, ...Object.keys(hit.ranks)])].filter((name) => name !== estimators[e]);
    return names.map((name) => [name, rank(name, estimators.indexOf(name))])
      .map(([name, r]) => `${name} ${r === undefined ? "not listed" : minus(r)}`).join(" · ");
  }

  function card(hit, far) {
    const name = d.names[hit.doc], kind = d.kinds[hit.doc], there = others(hit);
    const heat = read(hit.far, heats[hit.i], d.levels[0]), values = read(hit.most, bars[hit.i], d.levels[1]);
    const sparse = `One token carries the score: ‖a‖₂/‖a‖₁ = ${hit.sparse}, above 2/3. Such matches are often spurious.`;
    return h("li", { class: "ab-hit" },
      h("div", { class: "ab-head" }, h("b", { text: minus(hit.rank) }), h("b", { class: "ab-score", text: words(hit.score) }),
        kind ? h("span", { class: "ab-chip ab-mute", text: kind }) : [],
        hit.sparse ? h("span", { class: "ab-chip ab-amber", title: sparse, text: `too sparse (${hit.sparse})` }) : [],
        h("span", { class: "ab-note", text: name })),
      colored(texts[hit.doc], heat, own.checked ? +hit.far : far, hit.far, name),
      h("div", { class: "ab-foot" }, there ? h("span", { text: `Rank elsewhere: ${there}` }) : [], values ? layers(values) : []));
  }

  function show() {
    const [q, e, t] = [query, estimator, third].map((x) => x.selectedIndex), [, prompt, completion] = queries[q];
    const list = hits(q, e, t), n = +count.value, widest = (some) => Math.max(0, ...some.map((x) => +x.far));
    const far = widest(list.filter((x) => !x.sparse)) || widest(list), beyond = widest(list) > far;  // a spike may not bleach the rest
    const top = list.filter((x) => x.rank > 0).slice(0, n), bottom = list.filter((x) => x.rank < 0).slice(0, n);
    const part = (title, some) => some.length ? [h("section", { "aria-label": title }, h("h4", { text: title }), h("ol", {}, some.map((x) => card(x, far))))] : [];
    asked.replaceChildren(h("b", { text: "The query; the completion, marked, is what was scored" }),
      h("span", {}, prompt, h("mark", { text: completion })));
    const called = (end, list, sign, effect) => list.every((x) => sign * x.score > 0) ? `${end}: make it ${effect} likely` : `${end} of the ranking`;
    ends.replaceChildren(...part(called("Top", top, 1, "more"), top), ...part(called("Bottom", bottom, -1, "less"), bottom));
    [from.textContent, to.textContent] = own.checked ? ["−most of its text", "+most"] : [(beyond ? "≤ " : "") + words(-far), (beyond ? "≥ " : "") + words(far)];
    const where = `${estimators[e]}, ${thirds[t]}`;
    said.textContent = list.length ? `${where}: ${top.length} from the top and ${bottom.length} from the bottom` : `${where}: nothing is stored for this choice`;
    value.textContent = point;
  }

  count.selectedIndex = Math.max(0, Math.min(longest, data.shown) - 1);
  stage.append(h("div", { class: "ab-bar" }, queryLabel, estimatorLabel, thirdLabel, countLabel,
      h("label", { class: "ab-row" }, own, h("span", { text: "own scale for each text" }))),
    asked, h("div", { class: "ab-legend" }, from, ramp, to, h("span", { text: "underlined: over half of it; dotted: negative" })),
    h("p", { class: "ab-note" }, said), ends, value,
    h("p", { class: "ab-note", text: `Token scores are rounded to 1/${d.levels[0]}, bars to 1/${d.levels[1]}, of the largest beside them.` }));
  show();
});
