// The same question under several conditions, side by side, with the words that differ marked.
boot("compare", (stage, { rows, key, columns }, root) => {
  const [label, select] = chooser(key, rows.map((r, i) => `${i + 1}. ${r[0].replace(/\s+/g, " ").slice(0, 70)}`), show);
  const mark = h("input", { type: "checkbox", onchange: show });
  const cols = h("div", { class: "ab-cols" }), said = h("span", { class: "ab-note", role: "status" });
  const words = (text) => (text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || []).slice(0, 900);
  function diff(a, b) {  // longest common subsequence of words
    const n = a.length, m = b.length, best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1)), out = [];
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    for (let i = 0, j = 0; i < n || j < m; ) {
      if (i < n && j < m && a[i] === b[j]) { out.push(["span", b[j]]); i++; j++; }
      else if (j >= m || (i < n && best[i + 1][j] >= best[i][j + 1])) out.push(["del", a[i++]]);
      else out.push(["ins", b[j++]]);
    }
    return out;
  }
  function show() {
    const at = select.selectedIndex, row = rows[at], first = words(row[1]);
    cols.replaceChildren(...columns.map((name, c) => {
      const text = row[c + 1];
      const body = mark.checked && c ? diff(first, words(text)).map(([tag, t]) => h(tag, { text: t })) : [h("span", { text })];
      return h("section", { "aria-label": name }, h("h4", { text: name }), body);
    }));
    said.textContent = `${at + 1} of ${rows.length}`;
  }
  const tick = columns.length > 1 ? [h("label", { class: "ab-row" }, mark, h("span", { text: `mark what differs from “${columns[0]}”` }))] : [];
  stage.append(h("div", { class: "ab-bar" }, label, tick, said), cols);
  show();
});
