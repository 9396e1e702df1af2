/* Light, dark, or as the system has it. Runs before the page is drawn, so nothing flashes. */
"use strict";

(() => {
  const KEY = "shardfc-colours";
  const chosen = () => {
    try {
      const value = localStorage.getItem(KEY);
      return value === "light" || value === "dark" ? value : "auto";
    } catch {
      return "auto"; // the browser keeps nothing for us
    }
  };
  const show = (value) => {
    document.documentElement.dataset.colours = value;
  };
  show(chosen());
  addEventListener("DOMContentLoaded", () => {
    const form = document.getElementById("colours");
    form.querySelector(`input[value=${chosen()}]`).checked = true;
    form.addEventListener("change", (event) => {
      show(event.target.value);
      try {
        localStorage.setItem(KEY, event.target.value);
      } catch {
        // chosen for as long as the page is open
      }
    });
  });
})();
