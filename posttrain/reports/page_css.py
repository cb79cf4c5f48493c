"""The style sheet of a report's page: light, dark, narrow, wide and printed.

Floor 5: knows the classes that `html.py` writes. Colours are a theme's CSS variables, the same as the figures'.
"""

from posttrain.reports.style import DARK, FONT_STACK, LIGHT, Theme

MONO_STACK = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def page_css() -> str:
    """Return the style sheet."""
    light, dark = _variables(LIGHT), _variables(DARK)
    fonts = f"--font: {FONT_STACK}; --mono: {MONO_STACK};"
    return f"""
:root {{ {light} {fonts} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
{_RULES}"""


def _variables(theme: Theme) -> str:
    return " ".join(f"{name}: {color};" for name, color in theme.variables().items())


_RULES = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--font); }
.page { max-width: 1480px; margin: 0 auto; padding: 0 16px 4rem; }
header { padding: 2.2rem 0 1rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -0.015em; text-wrap: balance; }
header p { margin: 0.4rem 0 0; color: var(--muted); }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 0.9rem; letter-spacing: -0.01em; }
h3 { font-size: 0.95rem; line-height: 1.4; margin: 0 0 0.5rem; }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: 0.15em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
code, pre, .start { font-family: var(--mono); font-size: 0.86em; }
:not(pre) > code { background: var(--panel); border-radius: 4px; padding: 0.1em 0.35em; user-select: all;
  overflow-wrap: anywhere; }

nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--grid); }
nav ol { display: flex; gap: 0.2rem 1.1rem; margin: 0; padding: 0.6rem 0; list-style: none; overflow-x: auto;
  scrollbar-width: thin; white-space: nowrap; font-size: 0.85rem; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover { color: var(--ink); text-decoration: underline; }
nav .missing a { opacity: 0.75; font-style: italic; }

section { padding: 2rem 0 0.4rem; }
section + section { border-top: 1px solid var(--grid); margin-top: 1.6rem; }
section > p.note { max-width: 72ch; color: var(--muted); font-size: 0.88rem; margin: 0 0 1rem; }
section.absent { padding-top: 1rem; font-size: 0.9rem; color: var(--muted); }
section.absent h2 { display: inline; font-size: inherit; color: var(--ink); margin: 0; }
section.absent h2::after { content: "."; }
section.absent p { display: inline; margin-left: 0.25rem; }

.findings { list-style: none; margin: 0 0 1.4rem; padding: 0; display: grid; gap: 0.5rem; max-width: 82ch; }
.findings li { display: grid; grid-template-columns: 6.4rem 1fr; gap: 0 0.6rem; align-items: baseline; }
.tone { font-size: 0.82rem; font-weight: 600; white-space: nowrap; color: var(--tone); }
.tone i { display: inline-block; width: 1.35em; font-style: normal; text-align: center; }
.better { --tone: var(--better); } .worse { --tone: var(--worse); } .doubt { --tone: var(--doubt); }
.warning { --tone: var(--warning); } .note { --tone: var(--muted); }
.lead { padding-top: 1.5rem; }
.lead .findings { max-width: none; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.lead .findings li { background: var(--panel); border-left: 4px solid var(--tone); border-radius: 6px;
  padding: 0.7rem 1rem 0.8rem; font-size: 1.02rem; align-content: start; grid-template-columns: 1fr; }
.lead .tone i { width: auto; margin-right: 0.4em; }

.figures { columns: 3 350px; column-gap: 1.9rem; margin: 0.4rem 0 0.4rem; }
figure { margin: 0 0 2rem; break-inside: avoid; }
figure.wide { column-span: all; overflow-x: auto; }
figure svg { display: block; width: 100%; max-width: 420px; height: auto; }
figure.wide svg { max-width: none; width: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { color: var(--muted); font-size: 0.78rem; margin-top: 0.5rem; max-width: 60ch; }

.table { margin: 0 0 1.6rem; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.4rem 0.9rem; vertical-align: baseline; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0.2rem; }
thead th > span { margin-left: auto; }
thead th:first-child > span { margin-left: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.94em; vertical-align: bottom;
  border-bottom-color: var(--muted); }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper); }
th > span { display: block; width: max-content; max-width: 11rem; white-space: normal;
  overflow-wrap: anywhere; }
tbody th > span { max-width: 22rem; }
td small { display: block; color: var(--muted); font-size: 0.9em; font-weight: 400; }
.bold { font-weight: 650; } .dim { color: var(--muted); } .green { color: var(--better); }
.red { color: var(--worse); } .yellow { color: var(--doubt); } .cyan { color: var(--accent); }
.caption { color: var(--muted); font-size: 0.82rem; margin: 0.5rem 0 0; max-width: 80ch; white-space: pre-line; }

.example { background: var(--panel); border-radius: 8px; padding: 0.9rem 1rem 1rem; margin: 0 0 1rem; }
.example h3 { display: inline; margin-right: 0.5rem; }
.marks { display: inline; margin: 0; padding: 0; list-style: none; font-size: 0.78rem; color: var(--muted); }
.marks li { display: inline-block; border: 1px solid var(--muted); border-radius: 99px; padding: 0 0.6em;
  margin: 0 0.3em 0.2em 0; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0.7rem 1.4rem;
  margin-top: 0.6rem; }
.text { min-width: 0; }
.text.asked { grid-column: 1 / -1; }
.text h4 { margin: 0 0 0.2rem; font-size: 0.78rem; font-weight: 600; color: var(--muted); }
pre, .start { margin: 0; font-size: 0.8rem; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; 
  tab-size: 4; border-left: 2px solid var(--grid); padding-left: 0.7rem; }
summary { cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
.start { display: block; }
.more, .less { color: var(--accent); font-size: 0.8rem; }
details:not([open]) .less, details[open] .more, details[open] .start { display: none; }

@media (min-width: 1250px) {
  .page { display: grid; grid-template-columns: 168px minmax(0, 1fr); gap: 0 2.4rem; padding: 0 32px 4rem; }
  header { grid-column: 2; }
  nav { grid-column: 1; grid-row: 2; border: 0; align-self: start; padding-top: 1.5rem; top: 0;
    max-height: 100vh; overflow-y: auto; }
  nav ol { display: grid; gap: 0.45rem; white-space: normal; padding: 0; overflow: visible; }
  main { grid-column: 2; min-width: 0; }
  html { scroll-padding-top: 1rem; }
}
@media (max-width: 560px) {
  h1 { font-size: 1.45rem; }
  .findings li { grid-template-columns: 1fr; }
  .tone i { width: auto; margin-right: 0.35em; }
  tbody th > span { max-width: 38vw; }
  th, td { padding: 0.4rem 0.45rem; }
}
@media print {
  @page { size: A4; margin: 14mm 13mm; }
  body { font-size: 9.5pt; }
  .page { display: block; max-width: none; padding: 0; }
  nav, .less { display: none; }
  header { padding-top: 0; }
  section { padding-top: 1.1rem; }
  section + section { margin-top: 0.9rem; }
  h2, h3, .note { break-after: avoid; }
  .findings li, tr, .example { break-inside: avoid; }
  .text h4 { break-after: avoid; }
  .figures { columns: 2; column-gap: 8mm; }
  figure { margin-bottom: 6mm; }
  figure svg { max-width: 100%; }
  .scroll { overflow: visible; width: auto; }
  table { width: 100%; font-size: 8pt; }
  th, td { white-space: normal; padding: 0.25rem 0.4rem; }
  .many table { font-size: 6.5pt; }
  .many th, .many td { padding: 0.2rem; }
  .many th > span { width: auto; }
  td small { white-space: nowrap; }
  tbody th { position: static; }
  thead { display: table-header-group; }
  .texts { grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
  .example, .lead .findings li { background: none; border: 1px solid var(--grid); }
  .lead .findings li { border-left: 4px solid var(--tone); }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
