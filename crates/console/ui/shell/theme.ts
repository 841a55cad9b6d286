// Light and dark theme: the system's setting unless the user selects one.

const KEY = "theme";
const CHOICES = ["system", "light", "dark"] as const;
type Choice = (typeof CHOICES)[number];
const LABELS: Record<Choice, string> = { system: "◐ System", light: "○ Light", dark: "● Dark" };

function stored(): Choice {
  try {
    const choice = localStorage.getItem(KEY);
    return CHOICES.find((other) => other === choice) ?? "system";
  } catch {
    return "system"; // Some browsers have no storage in private windows.
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
      // Without storage the choice applies to this page only.
    }
    show();
  });
  show();
}
