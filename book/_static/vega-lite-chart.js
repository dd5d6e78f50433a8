// Draw the book's charts from their own page: no server is asked. A chart is drawn when it comes near the
// window, or before print. Its ink is the page's (currentColor), so light and dark need no second drawing.
(() => {
  const INK = { background: "transparent", text: { color: "currentColor" }, rule: { color: "currentColor" } };

  function merged(a, b) {  // b wins
    const out = { ...a };
    for (const [k, v] of Object.entries(b || {})) {
      out[k] = v && typeof v === "object" && !Array.isArray(v) ? merged(a[k] || {}, v) : v;
    }
    return out;
  }

  function draw(el) {
    if (el.drawn) return el.drawn;
    const { spec, options } = JSON.parse(el.querySelector("script").textContent);
    const target = el.appendChild(document.createElement("div"));
    spec.config = merged(INK, spec.config);
    el.drawn = window.vegaEmbed(target, spec, { actions: false, renderer: "svg", ...options })
      .then(({ view }) => { el.vegaView = view; })
      .catch((e) => {
        target.textContent = `This chart could not be drawn: ${e.message || e}`;
        el.dataset.failed = "1";
      });
    return el.drawn;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const charts = [...document.querySelectorAll("div.vega-lite-chart")];
    const near = new IntersectionObserver((seen) => {
      for (const s of seen) if (s.isIntersecting) { near.unobserve(s.target); draw(s.target); }
    }, { rootMargin: "600px" });
    for (const el of charts) near.observe(el);
    const drawAll = () => Promise.all(charts.map(draw));
    window.addEventListener("beforeprint", drawAll);
    window.alignbookDrawAll = drawAll;  // for the page tests
  });
})();
