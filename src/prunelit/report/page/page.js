"use strict";
document.documentElement.classList.add("js");
for (const box of document.querySelectorAll("[data-list]")) {
  const items = [...box.querySelectorAll(".item")];
  if (items.length === 0) continue;
  const search = box.querySelector("input");
  const order = box.querySelector("select");
  const count = box.querySelector("output");
  const button = box.querySelector("button");
  const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  let most = 10;
  const show = () => {
    const words = search.value.toLowerCase();
    const found = items.filter((item) => texts.get(item).includes(words));
    const key = (item) => Number(item.dataset[order.value]);
    found.sort((a, b) => key(a) - key(b) || a.dataset.place - b.dataset.place);
    for (const item of items) item.hidden = true;
    found.forEach((item, place) => {
      item.hidden = place >= most;
      item.parentNode.append(item);
    });
    count.textContent = `${Math.min(most, found.length)} of ${found.length} shown`;
    button.hidden = found.length <= most;
  };
  search.addEventListener("input", show);
  order.addEventListener("change", show);
  button.addEventListener("click", () => {
    most = Infinity;
    show();
  });
  show();
}
