/**
 * Light, dark or system theme. A classic script in the head, so that the page never flashes in the wrong theme.
 */
(() => {
  const NAME = "tokenrelay.theme";
  /** @type {Record<string, string>} */
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const root = document.documentElement;
  let theme = remembered();

  function remembered() {
    try {
      return localStorage.getItem(NAME) ?? "system";
    } catch {
      return "system"; // storage is forbidden
    }
  }

  function remember() {
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // The choice then lasts until the page is closed.
    }
  }

  function apply() {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  apply();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = document.getElementById("theme-name");
    const tell = () => {
      if (name) name.textContent = theme.charAt(0).toUpperCase() + theme.slice(1);
    };
    tell();
    button?.addEventListener("click", () => {
      theme = NEXT[theme] ?? "system";
      remember();
      apply();
      tell();
    });
  });
})();
