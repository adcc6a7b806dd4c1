// Light, dark or as the system has it, kept in localStorage. Runs before the first paint, so that nothing flashes.
(() => {
  const next = { auto: "light", light: "dark", dark: "auto" };
  const read = () => {
    try {
      return next[localStorage.getItem("theme")] ? localStorage.getItem("theme") : "auto";
    } catch {
      return "auto"; // storage is off: the choice lasts as long as the page
    }
  };
  let theme = read();
  const show = () => {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[theme];
      button.setAttribute("aria-label", `Colours: ${theme}. Change to ${next[theme]}`);
    }
  };
  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").onclick = () => {
      theme = next[theme];
      try {
        localStorage.setItem("theme", theme);
      } catch {
        // see above
      }
      show();
      window.dispatchEvent(new Event("themechange"));
    };
  });
})();
