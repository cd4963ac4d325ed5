const narrow = window.innerWidth < 640;
for (const place of document.querySelectorAll(".plot")) {
  const { data, layout } = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  if (narrow) {
    layout.font.size = 11;
    layout.margin.t = 24;
    for (const note of (layout.annotations || []).filter((a) => a.name === "cell")) {
      note.font.size = 9;
      note.text = note.text.replace("0.", ".").replace("1.00", "1");
    }
    // a legend that wraps takes room from the lines
    layout.height += layout.showlegend ? 20 * data.filter((t) => t.showlegend).length : 0;
  }
  // a finger scrolls the page, it does not zoom
  if (window.matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  Plotly.newPlot(place, data, layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: narrow ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    plotlyServerURL: "",
  });
}
