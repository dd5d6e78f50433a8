// Cost of an answer against shots, on log axes: choose a curve, set a target, read off the shots it needs.
boot("loglog", (stage, { curves, facets, labels, unit }, root) => {
  const W = 700, H = 400, L = 74, R = 66, T = 14, B = 54, ZERO = 34;  // ZERO: room at the left for zero shots
  const shapes = {  // the same as SHAPES in fits.py: smallest n, value, inverse
    power: [1, (n, a) => n ** -a, (q, a) => q ** (-1 / a)],
    bounded_power: [0, (n, a, c) => (1 + n / c) ** -a, (q, a, c) => c * (q ** (-1 / a) - 1)],
    exponential: [0, (n, r) => Math.exp(-r * n), (q, r) => -Math.log(q) / r],
    logistic: [0, (n, s, m) => 1 / (1 + (n / m) ** s), (q, s, m) => m * (1 / q - 1) ** (1 / s)],
  };
  const cost = (form, f, n) => f[0] * shapes[form][1](n, f[1], f[3]) + f[2];  // f = [C, alpha, K, n_c]
  const shots = (form, f, t) => {
    const [start, , inverse] = shapes[form];
    if (cost(form, f, start) <= t) return start;
    if (!(f[0] > 0) || t <= f[2]) return Infinity;
    return Math.max(start, inverse(Math.min(1, (t - f[2]) / f[0]), f[1], f[3]));
  };
  const all = curves.flatMap((c) => c.points), ns = all.map((p) => p.n).filter((n) => n > 0);
  const x0 = Math.min(...ns), x1 = Math.max(...ns) * 16, zero = all.some((p) => p.n === 0);
  const ys = all.flatMap((p) => [p.nll, p.lo, p.hi]).filter((v) => v > 0);
  const y0 = Math.min(Math.min(...ys) / 1.6, 0.045), y1 = Math.max(...ys) * 1.3;
  const left = L + (zero ? ZERO : 0), span = (v, a, b) => Math.log(v / a) / Math.log(b / a);
  const px = (n) => n > 0 ? left + Math.max(0, Math.min(1, span(n, x0, x1))) * (W - R - left) : L + 8;
  const py = (v) => H - B - Math.max(0, Math.min(1, span(v, y0, y1))) * (H - B - T);
  const aims = [0.1, 0.2, 0.5, ...Array(99).keys(), 98.5, 99.5, 99.8, 99.9].filter((p) => p > 0).map((p) => p / 100)
    .sort((a, b) => a - b).filter((p) => -Math.log(p) > y0 && -Math.log(p) < y1);
  if (!aims.length) for (let i = 0; i <= 60; i++) aims.push(Math.exp(-y1 * (y0 / y1) ** (i / 60)));
  const value = Object.fromEntries(facets.map((f) => [f, curves[0][f]]));
  const selects = {}, lower = s("g"), upper = s("g"), said = h("output", { role: "status" });
  let now = curves[0];
  const start = aims.reduce((best, p, i) => Math.abs(p - 0.5) < Math.abs(aims[best] - 0.5) ? i : best, 0);
  const [label, input] = slider("Target: how likely the answer should be", aims.length - 1, start, read);

  function pick(facet, chosen) {  // the curve that keeps most of the other choices
    value[facet] = chosen;
    const score = (c) => facets.reduce((sum, f) => sum + (c[f] === value[f]), 0);
    now = curves.filter((c) => c[facet] === chosen).reduce((a, b) => (score(b) > score(a) ? b : a));
    for (const f of facets) { value[f] = now[f]; selects[f].value = now[f]; }
    draw();
  }
  const path = (c, a, b) => Array.from({ length: 61 }, (_, i) => a * (b / a) ** (i / 60)).map((n) => `${px(n).toFixed(1)},${py(cost(c.form, c.fit, n)).toFixed(1)}`).join(" ");
  const name = (c) => facets.map((f) => c[f]).join(", ");
  function axes() {
    const g = s("g"), text = (x, y, t, more) => s("text", { x, y, text: t, "text-anchor": "middle", ...more });
    const powers = [];
    for (let n = 2 ** Math.ceil(Math.log2(x0)); n <= x1; n *= 2) powers.push(n);
    powers.forEach((n, i) => {
      g.append(s("line", { class: "ab-grid", x1: px(n), x2: px(n), y1: T, y2: H - B }));
      if (powers.length < 11 || i % 2 === 0) g.append(text(px(n), H - B + 18, n >= 10000 ? `${n / 1000}k` : String(n)));
    });
    if (zero) g.append(text(L + 8, H - B + 18, "0"));
    const narrow = y1 / y0 < 12 ? [1, 1.5, 2, 3, 5, 7] : y1 / y0 < 300 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(y0)); e <= Math.log10(y1); e++) for (const m of narrow) {
      const v = m * 10 ** e;
      if (v < y0 || v > y1) continue;
      g.append(s("line", { class: "ab-grid", x1: L, x2: W - R, y1: py(v), y2: py(v) }), text(L - 8, py(v) + 4, num(v), { "text-anchor": "end" }));
    }
    for (const p of [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999]) {
      const v = -Math.log(p);
      if (v > y0 && v < y1) g.append(text(W - R + 8, py(v) + 4, `${+(100 * p).toFixed(1)}%`, { "text-anchor": "start" }));
    }
    const mid = (T + H - B) / 2;
    g.append(text((L + W - R) / 2, H - 10, "shots in the prompt"), text(0, 0, unit, { transform: `translate(16,${mid}) rotate(-90)` }),
      text(0, 0, "probability", { transform: `translate(${W - 6},${mid}) rotate(-90)` }));
    return g;
  }
  function draw() {
    const top = Math.max(...now.points.map((p) => p.n)), first = Math.min(...now.points.map((p) => p.n).filter((n) => n > 0));
    const ghosts = curves.filter((c) => c !== now).slice(0, 24).map((c) => s("polyline", { class: "ab-ghost", points: path(c, x0, Math.max(...c.points.map((p) => p.n))) }, s("title", { text: name(c) })));
    const rim = [];
    if (now.draws.length > 4) for (const q of [0.025, 0.975]) {
      const line = Array.from({ length: 41 }, (_, i) => x0 * (x1 / x0) ** (i / 40)).map((n) => `${px(n).toFixed(1)},${py(quantile(now.draws.map((d) => cost(now.form, d, n)).sort((a, b) => a - b), q)).toFixed(1)}`);
      rim.push(...(q < 0.5 ? line : line.reverse()));
    }
    const marks = now.points.filter((p) => p.nll > 0).flatMap((p) => [
      ...(p.lo > 0 && p.hi > 0 ? [s("line", { class: "ab-err", x1: px(p.n), x2: px(p.n), y1: py(p.lo), y2: py(p.hi) })] : []),
      s("circle", { class: "ab-dot", cx: px(p.n), cy: py(p.nll), r: 4 }, s("title", { text: `${p.n} shots: ${num(p.nll)} nats` }))]);
    const far = px(top) + 8;
    lower.replaceChildren(...ghosts, ...(rim.length ? [s("polygon", { class: "ab-band", points: rim.join(" ") })] : []),
      s("polyline", { class: "ab-fit", points: path(now, first, top) }),
      s("polyline", { class: "ab-fit", points: path(now, top, x1), "stroke-dasharray": "5 5" }), ...marks,
      ...(far < W - R - 90 ? [s("text", { x: far, y: T + 14, text: "extrapolated →", "font-size": 12, style: "fill:var(--ab-soft)" })] : []),
      s("line", { class: "ab-grid", x1: px(top), x2: px(top), y1: T, y2: H - B, "stroke-dasharray": "2 3" }));
    read(+input.value);
  }
  const many = (n) => n === Infinity ? "never" : n < 10 ? num(n, 2) : n < 1e6 ? Math.round(n).toLocaleString("en") : n < 1e15 ? num(n) : "over 10¹⁵";
  function read(i) {
    const p = aims[i], t = -Math.log(p), n = shots(now.form, now.fit, t), top = Math.max(...now.points.map((q) => q.n));
    const each = now.draws.map((d) => shots(now.form, d, t)).sort((a, b) => a - b), never = each.filter((v) => v === Infinity).length / (each.length || 1);
    const low = each.length ? quantile(each, 0.025) : null, high = each.length ? quantile(each, 0.975) : null;
    const range = each.length ? ` (95 % interval ${many(low)} to ${many(high)})` : "";
    let text = `For a probability of ${percent(p)} (a cost of ${num(t)} nats), `;
    if (n === Infinity) text += `never under this fit: its cost ${now.fit[0] > 0 ? `levels off at ${num(now.fit[2])} nats` : "does not fall with shots"}.`;
    else if (n === shapes[now.form][0]) text += `${n ? "one shot is" : "no shots are"} enough under this fit${range}.`;
    else text += `this fit needs about ${many(n)} ${many(n) === "1" ? "shot" : "shots"}${range}.`;
    if (each.length && (n === Infinity || never > 0)) text += ` ${percent(never)} of the bootstrap draws never reach it.`;
    if (n !== Infinity && n > top) text += ` This is extrapolated: measured only up to ${top} shots.`;
    said.textContent = text;
    label.firstChild.textContent = `Target probability: ${percent(p)}`;
    Object.assign(said.dataset, { p, n, low, high, never });
    input.setAttribute("aria-valuetext", `probability ${percent(p)}, cost ${num(t)} nats`);
    const y = py(t), x = px(n), grip = s("rect", { class: "ab-grip", x: L, y: y - 14, width: W - R - L, height: 28 });
    const range2 = low !== null && low < x1 ? [s("rect", { class: "ab-span", x: px(low), y: T, width: Math.max(1, px(high === Infinity ? x1 : high) - px(low)), height: H - B - T })] : [];
    upper.replaceChildren(...range2, s("line", { class: "ab-aim", x1: L, x2: W - R, y1: y, y2: y, "stroke-dasharray": "6 4" }),
      ...(n <= x1 ? [s("line", { class: "ab-aim", x1: x, x2: x, y1: y, y2: H - B }), s("circle", { cx: x, cy: y, r: 5, style: "fill:var(--ab-warm)" })] : []), grip);
  }
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Cost of the answer against shots, both on log scales; the text below the slider reads the curve" }, axes(), lower, upper);
  const drag = (e) => {
    const box = svg.getBoundingClientRect(), y = ((e.clientY - box.top) / box.height) * H;
    const t = y0 * (y1 / y0) ** ((H - B - y) / (H - B - T)), off = (p) => Math.abs(Math.log(-Math.log(p) / t));
    input.value = aims.reduce((best, a, i) => (off(a) < off(aims[best]) ? i : best), 0);
    read(+input.value);
  };
  svg.addEventListener("pointerdown", (e) => { if (e.target.classList.contains("ab-grip")) { svg.setPointerCapture(e.pointerId); svg.dataset.drag = "1"; drag(e); } });
  svg.addEventListener("pointermove", (e) => { if (svg.dataset.drag) drag(e); });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => delete svg.dataset.drag);
  const bar = h("div", { class: "ab-bar" });
  for (const f of facets) {
    const options = [...new Set(curves.map((c) => c[f]))], [box, select] = chooser(labels[f] || f, options, (v) => pick(f, v));
    selects[f] = select;
    if (options.length > 1) bar.append(box);
  }
  stage.append(bar, h("div", { class: "ab-plot" }, svg), h("div", { class: "ab-bar" }, label), said);
  draw();
});
