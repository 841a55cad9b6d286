// Light and dark: as the system says, until someone says otherwise.

const KEY = "theme";
const CHOICES = ["system", "light", "dark"] as const;
type Choice = (typeof CHOICES)[number];
const LABELS: Record<Choice, string> = { system: "◐ System", light: "○ Light", dark: "● Dark" };

function stored(): Choice {
  try {
    const choice = localStorage.getItem(KEY);
    return CHOICES.find((other) => other === choice) ?? "system";
  } catch {
    return "system"; // No storage in private windows of some browsers.
  }
}

export function startTheme(toggle: HTMLButtonElement): void {
  let choice = stored();
  const show = () => {
    if (choice === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = choice;
    toggle.textContent = LABELS[choice];
    toggle.title = "Colours: system, light or dark";
  };
  toggle.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length] ?? "system";
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // Then it holds for this page only.
    }
    show();
  });
  show();
}
