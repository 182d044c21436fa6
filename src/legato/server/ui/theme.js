// The chosen theme, before anything is drawn. Without a choice the system's own holds.
try {
  const chosen = localStorage.getItem('legato.theme');
  if (chosen === 'dark' || chosen === 'light') document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; then the system's theme holds.
}
