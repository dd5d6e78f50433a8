// Two line charts that answer a question: power against the number of pairs, and a preference against the steps of training.
const size = (stage) => {
  const W = Math.min(704, Math.max(260, stage.clientWidth || 704));
  return { W, H: Math.round(170 + W * 0.23), L: W < 520 ? 42 : 54, R: 12, T: 24, B: 44 };
};
const write = (x, y, text, more) => s("text", { x, y, text, "text-anchor": "middle", ...more });
const path = (list) => list.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
const sample = (look) => s("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" }, s("line", { x1: 1, x2: 35, y1: 5, y2: 5, ...look }));
const redraw = (stage, draw) => {
  let last = stage.clientWidth;
  window.addEventListener("resize", () => { if (stage.clientWidth !== last) { last = stage.clientWidth; draw(); } });
};
const levels = (at, up, title) => {  // lines and labels of a share from 0 to 100 %
  const g = s("g"), { W, L, R, T, H, B } = at;
  for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) g.append(s("line", { class: "ab-grid", x1: L, x2: W - R, y1: up(v), y2: up(v) }), write(L - 6, up(v) + 4, `${Math.round(100 * v)}`, { "text-anchor": "end" }));
  g.append(write(0, 0, title, { transform: `translate(12,${(T + H - B) / 2}) rotate(-90)` }));
  return g;
};

const normal = (x) => {  // distribution function; series near the middle, continued fraction in the tails: 1e-13
  if (x < 0) return 1 - normal(-x);
  const density = Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  if (x > 38) return 1;
  if (x < 5) {
    let term = x, sum = x;
    for (let k = 1; k < 90; k++) sum += term *= (x * x) / (2 * k + 1);
    return 0.5 + sum * density;
  }
  let tail = x;
  for (let k = 40; k > 0; k--) tail = x + k / tail;
  return 1 - density / tail;
};
const solve = (f, low, high) => {  // where an increasing function passes zero
  for (let i = 0; i < 80; i++) { const mid = (low + high) / 2; if (f(mid) < 0) low = mid; else high = mid; }
  return high;
};
const cuts = new Map();  // it is asked for every point of a curve
const cut = (p) => {  // the normal deviate that is exceeded with probability p
  if (!cuts.has(p)) cuts.set(p, solve((x) => normal(x) - 1 + p, -9, 9));
  return cuts.get(p);
};
const least = (v) => Math.max(v, 1e-12);
const see = {  // the formulas of the Python function `chances`
  paired: (n, gap, { psi, alpha }) => {
    const d = Math.max(psi, gap, 1e-12);
    return normal((gap * Math.sqrt(n) - cut(alpha / 2) * Math.sqrt(d)) / Math.sqrt(least(d - gap * gap)));
  },
  unpaired: (n, gap, { rate, alpha }) => {
    const other = rate + gap, mid = (rate + other) / 2;
    return normal((gap * Math.sqrt(n) - cut(alpha / 2) * Math.sqrt(least(2 * mid * (1 - mid)))) / Math.sqrt(least(rate * (1 - rate) + other * (1 - other))));
  },
};
const spread = { paired: ({ psi }) => psi, unpaired: ({ rate, gap }) => 2 * (rate + gap / 2) * (1 - rate - gap / 2) };  // without a gap: the rate half way
const same = (kind, n, now) => Math.max(0, 2 * normal(now.margin * Math.sqrt(n / least(spread[kind](now))) - cut(now.alpha)) - 1);
const smallest = (kind, n, now) => (see[kind](n, 1 - now.rate, now) < 0.8 ? null : solve((g) => see[kind](n, g, now) - 0.8, 0, 1 - now.rate));
const enough = (kind, now) => (see[kind](1e9, now.gap, now) < 0.8 ? null : Math.ceil(solve((n) => see[kind](n, now.gap, now) - 0.8, 1, 1e9) - 1e-6));

const logs = [0];  // logarithms of factorials
const binomial = (n, p) => {  // probabilities of 0 to n
  while (logs.length <= n) logs.push(logs[logs.length - 1] + Math.log(logs.length));
  return Array.from({ length: n + 1 }, (_, k) => (p <= 0 ? +(k === 0) : p >= 1 ? +(k === n) : Math.exp(logs[n] - logs[k] - logs[n - k] + k * Math.log(p) + (n - k) * Math.log(1 - p))));
};
const exact = (n, { gap, psi, alpha }) => {  // the Python function `exact_power`
  const d = Math.max(psi, gap), differ = binomial(n, d);
  return differ.reduce((sum, share, m) => {
    if (share < 1e-12) return sum;
    const fair = binomial(m, 0.5), real = binomial(m, (1 + gap / d) / 2);
    let chance = 0;
    for (let k = m, tail = fair[m]; k >= 0 && tail <= (alpha / 2) * (1 + 1e-12); tail += fair[--k]) chance += real[k];
    return sum + share * chance;
  }, 0);
};

boot("power", (stage, { presets, paired, most: far, colors }) => {
  const N = [10, 5000], at = (n) => Math.round((270 * Math.log(n / N[0])) / Math.log(N[1] / N[0])), now = { ...presets[0] };
  let first = paired ? "paired" : "unpaired";
  const points = (v) => String(+(100 * v).toFixed(1)), chance = (v) => (v > 0.999 && v < 1 ? "over 99.9\u00a0%" : `${(100 * v).toFixed(1)}\u00a0%`);
  const dial = (name, max, key, read, say) => {
    const [label, input] = slider(name, max, 0, (v) => { now[key] = read(v); press(null); draw(); }), value = h("b");
    label.firstChild.append(": ", value);
    return { label, input, key, show: (v) => { input.value = v; value.textContent = say(now[key]); input.setAttribute("aria-valuetext", say(now[key])); } };
  };
  const most = () => Math.max(now.gap, Math.min(2 * now.rate + now.gap, 2 - 2 * now.rate - now.gap)), alone = () => now.rate * (1 - now.rate - now.gap) + (now.rate + now.gap) * (1 - now.rate);
  const dials = {
    n: dial("Pairs in each tier", 270, "n", (v) => Math.round(N[0] * (N[1] / N[0]) ** (v / 270)), (v) => v.toLocaleString("en")),
    rate: dial("Non-compliance on the free tier", 200, "rate", (v) => v / 200, (v) => `${points(v)} %`),
    gap: dial("Gap to look for", 100, "gap", (v) => Math.max(v, 1) / 200, (v) => `${points(v)} points`),
    psi: dial("Pairs that differ between the tiers", 200, "psi", (v) => v / 200, (v) => `${points(v)} %`),
    margin: dial("Margin of the equivalence test", 40, "margin", (v) => Math.max(v, 1) / 200, (v) => `±${points(v)} points`),
  };
  const [alphaLabel, alpha] = chooser("Level α (two-sided)", [0.1, 0.05, 0.01], () => { now.alpha = +alpha.value; press(null); draw(); });
  const [planLabel, plan] = chooser("Design", ["paired: the same requests on both tiers", "unpaired: other requests on each tier"], () => { first = ["paired", "unpaired"][plan.selectedIndex]; draw(); });
  plan.selectedIndex = paired ? 0 : 1;
  const sets = presets.map((p) => h("button", { type: "button", text: p.name, "aria-pressed": "false", onclick: () => { Object.assign(now, p); press(p); draw(); } }));
  const press = (p) => sets.forEach((b, i) => b.setAttribute("aria-pressed", String(presets[i] === p)));
  const chart = h("div", { class: "ab-chart" }), said = h("output", { role: "status" }), note = h("p", { class: "ab-note" }), body = h("tbody");
  const other = () => (first === "paired" ? "unpaired" : "paired");
  const looks = () => ({ [first]: { stroke: colors[0], "stroke-width": 2.6 }, [other()]: { stroke: colors[1], "stroke-width": 2, "stroke-dasharray": "7 4" }, same: { stroke: colors[2], "stroke-width": 2, "stroke-dasharray": "2 4" } });
  const key = h("div", { class: "ab-key" });
  function curve() {
    const box = size(stage), { W, H, L, R, T, B } = box, look = looks();
    const px = (n) => L + (Math.log(n / N[0]) / Math.log(N[1] / N[0])) * (W - L - R), py = (v) => H - B - v * (H - T - B);
    const steps = Array.from({ length: 121 }, (_, i) => N[0] * (N[1] / N[0]) ** (i / 120)), g = s("g", { fill: "none" });
    const lines = { [other()]: (n) => see[other()](n, now.gap, now), same: (n) => same(first, n, now), [first]: (n) => see[first](n, now.gap, now) };
    for (const n of [10, 30, 100, 300, 1000, 3000]) g.append(s("line", { class: "ab-grid", x1: px(n), x2: px(n), y1: T, y2: H - B }), write(px(n), H - B + 17, n.toLocaleString("en")));
    g.append(levels(box, py, "chance (%)"), write((L + W - R) / 2, H - 6, "pairs in each tier"), s("line", { class: "ab-half", x1: L, x2: W - R, y1: py(0.8), y2: py(0.8) }));
    for (const [k, f] of Object.entries(lines)) g.append(s("path", { d: path(steps.map((n) => [px(n), py(f(n))])), ...look[k] }));
    g.append(s("line", { class: "ab-now", x1: px(now.n), x2: px(now.n), y1: T, y2: H - B }), write(px(now.n), T - 8, `n = ${now.n.toLocaleString("en")}`, { "text-anchor": now.n < 30 ? "start" : now.n > 1500 ? "end" : "middle" }));
    for (const [k, f] of Object.entries(lines)) g.append(s("circle", { cx: px(now.n), cy: py(f(now.n)), r: 5, fill: look[k].stroke, stroke: "var(--ab-card)", "stroke-width": 1.4 }));
    const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Power against the number of pairs; the numbers are in the text and the table below" }, g);
    svg.addEventListener("click", (e) => {
      const x = ((e.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * W;
      now.n = Math.min(N[1], Math.max(N[0], Math.round(N[0] * (N[1] / N[0]) ** ((x - L) / (W - L - R)))));
      press(null);
      draw();
    });
    chart.replaceChildren(svg);
  }
  function draw() {
    now.rate = Math.min(now.rate, 1 - 0.005);
    now.gap = Math.min(now.gap, 1 - now.rate);
    now.psi = Math.max(now.gap, Math.min(now.psi, most()));
    dials.n.show(at(now.n));
    for (const k of ["rate", "gap", "psi", "margin"]) dials[k].show(Math.round(200 * now[k]));
    alpha.value = now.alpha;
    const found = Object.fromEntries(["paired", "unpaired"].map((k) => [k, { power: see[k](now.n, now.gap, now), smallest: smallest(k, now.n, now), enough: enough(k, now), same: same(k, now.n, now) }]));
    const sure = now.n <= far ? exact(now.n, now) : null;
    said.dataset.exact = sure;
    for (const [k, v] of Object.entries(found)) for (const [name, x] of Object.entries(v)) said.dataset[`${k}${name[0].toUpperCase()}${name.slice(1)}`] = x;
    for (const k of ["n", "rate", "gap", "psi", "alpha", "margin"]) said.dataset[k] = now[k];
    const f = found[first], small = (v) => (v === null ? "none" : `${points(v)} points`);
    const off = first === "paired" && sure !== null && Math.abs(sure - f.power) > 0.02;  // the formula is off
    const told = off ? `${chance(sure)} chance (paired, exact test; by the formula ${chance(f.power)})` : `${chance(f.power)} chance (${first})`;
    said.textContent = `With ${now.n.toLocaleString("en")} pairs, a true gap of ${points(now.gap)} points is seen with ${told}. `
      + (f.smallest === null ? "No gap is seen with 80\u00a0%." : `Seen with 80\u00a0% chance: gaps from ${points(f.smallest)} points.`)
      + ` Were there no gap, the equivalence test would say so (within ±${points(now.margin)}) with ${chance(f.same)} chance.`;
    body.replaceChildren(...Object.entries(found).map(([k, v]) => h("tr", {}, h("th", { scope: "row", text: k }), [chance(v.power), k === "paired" && sure !== null ? chance(sure) : "–", small(v.smallest), v.enough === null ? "never" : v.enough.toLocaleString("en"), chance(v.same)].map((t) => h("td", { text: t })))));
    note.textContent = `The formulas are normal approximations; up to ${far} pairs the exact McNemar test is worked out as well. Answers that ignore each other would differ in ${points(alone())} % of pairs at these rates; at least ${points(now.gap)} % must differ for this gap.`;
    const words = { [first]: `sees the gap, ${first}`, [other()]: `sees the gap, ${other()}`, same: `calls no gap equivalent, ${first}` };
    key.replaceChildren(...Object.entries(looks()).map(([k, look]) => h("span", {}, sample(look), words[k])));
    curve();
  }
  const head = ["design", "power", "exact test", "smallest gap seen with 80 %", "pairs for 80 %", "equivalence test"].map((t) => h("th", { scope: "col", text: t }));
  stage.append(h("div", { class: "ab-set", role: "group", "aria-label": "Studies" }, sets), h("div", { class: "ab-dials" }, Object.values(dials).map((d) => d.label), alphaLabel, planLabel), said, key, chart,
    h("div", { class: "ab-scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), body)), note);
  press(presets[0]);
  draw();
  redraw(stage, draw);
});

boot("order", async (stage, data) => {
  const lines = await unpack(data.lines), { menus, names, phases, colors, y: title } = data;
  const dashes = ["none", "8 4", "2 4", "10 3 2 3", "5 2"], look = (c) => ({ stroke: colors[c % colors.length], "stroke-width": 2.4, "stroke-dasharray": dashes[c % dashes.length], fill: "none" });
  const picks = menus.map(([name, values]) => chooser(name, values, fresh));
  const chart = h("div", { class: "ab-chart" }), said = h("output", { role: "status" }), body = h("tbody"), key = h("div", { class: "ab-key" });
  const [label, cursor] = slider("Step", 0, 0, tell), over = s("g", { "pointer-events": "none" });
  let here = [], starts = [], stops = [], px, py;
  const places = () => [...new Map(here.flatMap((l) => l.phases.flatMap((rows, k) => rows.map(([step]) => [`${k},${step}`, [k, step]])))).values()].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const number = ([, p, lo, hi, n]) => `${p.toFixed(2)}${lo === null ? "" : ` [${lo.toFixed(2)}, ${hi.toFixed(2)}]`}${n === null ? "" : `, n = ${n}`}`;
  function draw() {
    const box = size(stage), { W, H, L, R, T, B } = box, lengths = phases.map((_, k) => Math.max(0, ...here.map((l) => (l.phases[k] || []).reduce((m, r) => Math.max(m, r[0]), 0))));
    starts = lengths.map((_, k) => lengths.slice(0, k).reduce((a, b) => a + b, 0));
    const all = lengths.reduce((a, b) => a + b, 0) || 1, g = s("g");
    px = (k, step) => L + ((starts[k] + step) / all) * (W - L - R);
    py = (v) => H - B - v * (H - T - B);
    phases.forEach((name, k) => {
      if (!lengths[k]) return;
      const [a, b] = [px(k, 0), px(k, lengths[k])], by = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5].find((v) => (b - a) / (lengths[k] / v) >= 46) || lengths[k];
      g.append(s("rect", { class: `ab-phase${k % 2 ? " ab-odd" : ""}`, x: a, width: b - a, y: T, height: H - T - B }), write((a + b) / 2, T - 8, b - a > 7 * name.length ? name : `${k + 1}`));
      for (let v = by; v <= lengths[k]; v += by) g.append(s("line", { class: "ab-grid", x1: px(k, v), x2: px(k, v), y1: H - B, y2: H - B + 5 }), write(px(k, v) - (v === lengths[k] && k === phases.length - 1 ? 8 : 0), H - B + 18, v));
    });
    g.append(levels(box, py, title), s("line", { class: "ab-half", x1: L, x2: W - R, y1: py(0.5), y2: py(0.5) }), write((L + W - R) / 2, H - 6, "steps in the phase"));
    for (const l of here) {
      l.phases.forEach((rows, k) => {
        const band = rows.filter((r) => r[2] !== null);
        if (band.length > 1) g.append(s("path", { d: `${path([...band.map((r) => [px(k, r[0]), py(r[3])]), ...band.reverse().map((r) => [px(k, r[0]), py(r[2])])])}z`, fill: colors[l.name % colors.length], "fill-opacity": 0.16 }));
      });
      g.append(s("path", { d: path(l.phases.flatMap((rows, k) => rows.map((r) => [px(k, r[0]), py(r[1])]))), ...look(l.name) }));
      l.half.forEach((c, k) => { if (c && c[0] !== null) g.append(s("circle", { cx: px(k, c[0]), cy: py(0.5), r: 5.5, fill: "var(--ab-card)", stroke: colors[l.name % colors.length], "stroke-width": 2.4 })); });
    }
    const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} against steps of training; the slider below reads it off` }, g, over);
    svg.addEventListener("pointermove", (e) => {
      const x = ((e.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * W, far = stops.map(([k, step]) => Math.abs(px(k, step) - x));
      if (far.length) { cursor.value = far.indexOf(Math.min(...far)); tell(); }
    });
    chart.replaceChildren(svg);
    tell();
  }
  function tell() {
    if (!stops.length) { over.replaceChildren(); said.textContent = "Not measured."; return; }
    const [k, step] = stops[+cursor.value], found = here.map((l) => [l, (l.phases[k] || []).find((r) => r[0] === step)]).filter(([, r]) => r);
    const where = `${phases[k]}, step ${step}`;
    label.firstChild.textContent = `Read off at: ${where}`;
    cursor.setAttribute("aria-valuetext", where);
    said.textContent = `${where}: ${found.map(([l, r]) => `${names[l.name]} ${number(r)}`).join("; ")}.`;
    over.replaceChildren(s("line", { class: "ab-now", x1: px(k, step), x2: px(k, step), y1: py(1), y2: py(0) }), ...found.map(([l, r]) => s("circle", { cx: px(k, step), cy: py(r[1]), r: 4.5, fill: colors[l.name % colors.length] })));
  }
  function fresh() {
    here = lines.filter((l) => l.at.every((v, i) => v === picks[i][1].selectedIndex));
    stops = places();
    Object.assign(cursor, { max: Math.max(0, stops.length - 1), value: 0 });
    key.replaceChildren(...here.map((l) => h("span", {}, sample(look(l.name)), names[l.name])));
    body.replaceChildren(...here.map((l) => h("tr", {}, h("th", { scope: "row", text: names[l.name] }), phases.map((_, k) => h("td", { text: l.said[k] || "–" })))));
    draw();
  }
  stage.append(...(picks.length ? [h("div", { class: "ab-bar" }, picks.map(([l]) => l))] : []), key, chart, h("div", { class: "ab-bar" }, label), said,
    h("div", { class: "ab-scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "steps to cross one half" }), phases.map((p) => h("th", { scope: "col", text: p })))), body)),
    h("p", { class: "ab-note", text: "Rings: where a line crosses one half. In brackets: where the ends of its band cross. The slider, or the pointer over the picture, reads the lines off." }));
  fresh();
  redraw(stage, draw);
});
