"use strict";
(() => {
  const cards = [...document.querySelectorAll(".cards > .card")];
  const holder = document.querySelector(".cards");
  const count = document.querySelector("#count");
  const chosen = Object.fromEntries(
    [...document.querySelectorAll(".controls select")].map((select) => [select.name, select]));
  const rank = (card) => ["no", "not known", "yes"].indexOf(card.dataset.agreement);
  const order = {
    "easiest first": (a, b) => a.dataset.difficulty - b.dataset.difficulty,
    "hardest first": (a, b) => b.dataset.difficulty - a.dataset.difficulty,
    "label not seen first": (a, b) => rank(a) - rank(b) || a.dataset.number - b.dataset.number,
    "by source": (a, b) => a.dataset.place - b.dataset.place || a.dataset.number - b.dataset.number,
    "by class": (a, b) => a.dataset.number - b.dataset.number,
  };
  const update = () => {
    let shown = 0;
    for (const card of cards) {
      const fits = ["class", "agreement", "source"].every(
        (name) => chosen[name].value === "" || card.dataset[name] === chosen[name].value);
      const [low, high] = chosen.range.value.split("-").map(Number);
      const difficulty = Number(card.dataset.difficulty);
      const within = chosen.range.value === "" || (difficulty >= low && (difficulty < high || high === 1 && difficulty <= 1));
      card.hidden = !(fits && within);
      shown += card.hidden ? 0 : 1;
    }
    holder.append(...[...cards].sort(order[chosen.order.value]));
    count.textContent = `${shown} of ${cards.length} images`;
  };
  document.querySelector(".controls").hidden = false;
  document.querySelector(".controls").addEventListener("change", update);
  update();
})();
