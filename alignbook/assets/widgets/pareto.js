// Helpful against harmless: one mark per stage, a path per trained condition that grows with the slider.
boot("pareto", (stage, { names, points, colors, zero, step }) => {
  const W = 700, H = 440, L = 64, R = 20, T = 16, B = 50, minus = (x) => String(x).replace("-", "−");
  const all = points.map(([c, at, x, x0, x1, y, y0, y1]) => ({ c, at, x, x0, x1, y, y0, y1 }));
  const reach = (keys) => {  // the ends of an axis, with room
    const v = all.flatMap((p) => keys.map((k) => p[k])).filter((x) => x !== null).concat(zero ? [0] : []);
    const [a, b] = [Math.min(...v), Math.max(...v)], pad = 0.06 * (b - a) || 1;
    return [a - pad, b + pad];
  };
  const [ax, bx] = reach(["x", "x0", "x1"]), [ay, by] = reach(["y", "y0", "y1"]);
  const px = (v) => L + ((v - ax) / (bx - ax)) * (W - L - R), py = (v) => H - B - ((v - ay) / (by - ay)) * (H - T - B);
  const steps = [...new Set(all.map((p) => p.at).filter((v) => v !== null))].sort((a, b) => a - b);
  const ticks = (a, b) => {
    const raw = (b - a) / 7, ten = 10 ** Math.floor(Math.log10(raw)), by = ten * [1, 2, 5, 10].find((m) => m * ten >= raw);
    return Array.from({ length: Math.floor(b / by) - Math.ceil(a / by) + 1 }, (_, i) => +((Math.ceil(a / by) + i) * by).toPrecision(12));
  };
  const color = (c) => colors[c % colors.length], form = (c) => (c + Math.floor(c / colors.length)) % 4;
  const shape = (c, x, y, r, more) => {  // circle, square, triangle, diamond
    const d = [`M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`, `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
      `M${x},${y - 1.2 * r}L${x + 1.15 * r},${y + 0.9 * r}H${x - 1.15 * r}z`, `M${x},${y - 1.3 * r}L${x + 1.3 * r},${y}L${x},${y + 1.3 * r}L${x - 1.3 * r},${y}z`][form(c)];
    return s("path", { d, fill: color(c), stroke: "var(--ab-card)", "stroke-width": 1.2, ...more });
  };
  const lower = s("g"), marks = s("g"), over = s("g", { "pointer-events": "none" }), said = h("output", { role: "status" });
  const [label, input] = slider(step, steps.length - 1, steps.length - 1, draw);
  const ticked = names.map((name, c) => h("input", { type: "checkbox", checked: true, onchange: draw }));
  let shown = [], here = 0, nodes = [];
  const now = () => steps[+input.value], minusNum = (v) => minus(num(v));
  const value = (v, lo, hi) => minusNum(v) + (lo === null || hi === null ? "" : ` [${minusNum(lo)}, ${minusNum(hi)}]`);
  const called = (p) => names[p.c] + (p.at === null ? "" : `, ${step} ${num(p.at)}`);
  const wins = (e) => `${Math.round(100 / (1 + 10 ** (-e / 400)))} %`;
  const about = (p) => `${called(p)}: helpful ${value(p.x, p.x0, p.x1)}, harmless ${value(p.y, p.y0, p.y1)} Elo.${zero && (p.x || p.y)
    ? ` Preferred to ${zero} in ${wins(p.x)} of comparisons for helpfulness, ${wins(p.y)} for harmlessness.` : ""}`;
  const cross = (p, width) => [["x0", "x1", "y", "y"], ["x", "x", "y0", "y1"]].filter((k) => k.every((key) => p[key] !== null))
    .map(([a, b, c, d]) => s("line", { x1: px(p[a]), x2: px(p[b]), y1: py(p[c]), y2: py(p[d]), stroke: color(p.c), "stroke-width": width, "stroke-opacity": 0.75 }));

  function axes() {
    const text = (x, y, t, more) => s("text", { x, y, text: t, "text-anchor": "middle", ...more }), g = s("g");
    for (const v of ticks(ax, bx)) g.append(s("line", { class: v ? "ab-grid" : "ab-ghost", x1: px(v), x2: px(v), y1: T, y2: H - B }), text(px(v), H - B + 18, minus(v)));
    for (const v of ticks(ay, by)) g.append(s("line", { class: v ? "ab-grid" : "ab-ghost", x1: L, x2: W - R, y1: py(v), y2: py(v) }), text(L - 8, py(v) + 4, minus(v), { "text-anchor": "end" }));
    g.append(text((L + W - R) / 2, H - 10, "helpfulness (Elo) →"), text(0, 0, "harmlessness (Elo) →", { transform: `translate(14,${(T + H - B) / 2}) rotate(-90)` }));
    return g;
  }
  function stairs(list) {  // the marks that none beats on both axes
    const best = list.filter((p) => !list.some((q) => q.x >= p.x && q.y >= p.y && (q.x > p.x || q.y > p.y))).sort((a, b) => a.x - b.x);
    return [best, best.map((p, i) => (i ? `H${px(p.x)}V${py(p.y)}` : `M${L},${py(p.y)}H${px(p.x)}`)).concat(best.length ? `V${H - B}` : []).join("")];
  }
  function labels(last) {  // names beside the latest marks, pushed apart where they would overlap
    const put = last.map((p) => ({ p, y: py(p.y) - 10, left: px(p.x) > (L + W) / 2 })).sort((a, b) => a.y - b.y), wide = (o) => 7 * names[o.p.c].length;
    const span = (o) => (o.left ? [px(o.p.x) - 10 - wide(o), px(o.p.x) - 10] : [px(o.p.x) + 10, px(o.p.x) + 10 + wide(o)]);
    put.forEach((o, i) => { for (const q of put.slice(0, i)) if (o.y - q.y < 16 && span(o)[0] < span(q)[1] && span(q)[0] < span(o)[1]) o.y = q.y + 16; });
    return put.map((o) => s("text", { x: px(o.p.x) + (o.left ? -10 : 10), y: Math.max(T + 12, o.y), "text-anchor": o.left ? "end" : "start", class: "ab-halo", text: names[o.p.c] }));
  }
  function tell(i) {
    const p = shown[i];
    said.textContent = about(p);
    over.replaceChildren(...cross(p, 2.6), s("circle", { cx: px(p.x), cy: py(p.y), r: 10, fill: "none", stroke: "var(--ab-ink)", "stroke-width": 1.6 }));
  }
  function walk(i) {
    nodes[here].setAttribute("tabindex", -1);
    here = Math.max(0, Math.min(nodes.length - 1, i));
    nodes[here].setAttribute("tabindex", 0);
    nodes[here].focus();
  }
  function draw() {
    shown = all.filter((p) => ticked[p.c].checked && (p.at === null || p.at <= now()));
    const paths = names.map((_, c) => shown.filter((p) => p.c === c)).filter((list) => list.length), last = paths.map((list) => list[list.length - 1]);
    const [best, line] = stairs(shown), far = (p) => !last.includes(p);
    nodes = shown.map((p, i) => s("g", { role: "img", tabindex: i ? -1 : 0, "aria-label": about(p), onfocus: () => tell(i), onmouseenter: () => tell(i), onclick: () => walk(i) },
      s("circle", { cx: px(p.x), cy: py(p.y), r: 12, fill: "transparent" }), shape(p.c, px(p.x), py(p.y), far(p) ? 4 : 6.5, { "fill-opacity": far(p) ? 0.55 : 1 })));
    here = 0;
    lower.replaceChildren(s("path", { d: line, class: "ab-ghost", style: "stroke-opacity:.8", "stroke-dasharray": "5 4" }), ...last.flatMap((p) => cross(p, 1.4)),
      ...paths.map((list) => s("polyline", { points: list.map((p) => `${px(p.x)},${py(p.y)}`).join(" "), fill: "none", stroke: color(list[0].c), "stroke-width": 2 })));
    marks.replaceChildren(...nodes, s("g", { "pointer-events": "none" }, labels(last)));
    over.replaceChildren();
    const upTo = steps.length ? `up to ${step} ${num(now())}` : "";
    label.firstChild.textContent = `Paths ${upTo}`;
    input.setAttribute("aria-valuetext", upTo);
    const corner = best.map((p) => called(p)).join("; ");
    said.textContent = shown.length ? `No mark on show beats these on both axes${upTo && ` (${upTo})`}: ${corner}.` : "Nothing to show: tick a condition.";
  }
  marks.addEventListener("keydown", (e) => {
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: nodes.length - 1 }[e.key];
    if (to !== undefined) { e.preventDefault(); walk(to); }
  });
  const legend = names.map((name, c) => h("label", { class: "ab-row" }, ticked[c], s("svg", { viewBox: "0 0 18 18", "aria-hidden": "true" }, shape(c, 9, 9, 6)), h("span", { text: name })));
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": "Harmlessness against helpfulness in Elo; arrow keys walk over the marks" }, axes(), lower, marks, over);
  stage.append(h("div", { class: "ab-bar", role: "group", "aria-label": "Conditions" }, legend), ...(steps.length > 1 ? [h("div", { class: "ab-bar" }, label)] : []),
    h("div", { class: "ab-plot" }, svg), said,
    h("p", { class: "ab-note", text: "Crosses: 95 % intervals of the latest mark. Point at a mark, or Tab to one and use the arrow keys." }));
  draw();
});
