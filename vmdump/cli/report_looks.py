"""How the page of ``vmdump report`` looks, and its only script: search in the log."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["POLICY", "SCRIPT", "STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --back: #fff; --ink: #1d2329; --soft: #59636e; --line: #d5dae0; --panel: #f5f7f9; --accent: #2563a8;
  --bad: #b42318; --good: #1a7f37; --warn: #8a5a00;
  --zero: #d9c56a; --packed: #2f7fc1; --plain: #7a52a8; --excluded: #c3cad1; --damaged: #c0392b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14181c; --ink: #e3e8ed; --soft: #9aa5b1; --line: #363e47; --panel: #1d2329; --accent: #79b4f0;
    --bad: #ff8a7a; --good: #6fcf85; --warn: #e8b64c;
    --zero: #b59f3f; --packed: #4f9fe0; --plain: #a98ad6; --excluded: #525c66; --damaged: #e0604f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { margin: .3rem 0; }
.soft { color: var(--soft); }
.bad { color: var(--bad); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
nav a { color: var(--accent); margin-right: 1rem; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .mono, .log { font: 12.5px/1.45 ui-monospace, monospace; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
.wide svg { min-width: 44rem; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); }
svg .entropy { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.zero { fill: var(--zero); } .packed { fill: var(--packed); } .plain { fill: var(--plain); }
.excluded { fill: var(--excluded); } .damaged { fill: var(--damaged); } .none { fill: none; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0; list-style: none; }
.key svg { display: inline-block; width: .9rem; height: .9rem; vertical-align: -.1rem; margin-right: .35rem; }
.swatch { stroke: var(--line); }
details { margin: .4rem 0; }
summary { cursor: pointer; }
.registers { columns: 15rem; margin: .3rem 0 .8rem; }
.registers div { break-inside: avoid; overflow-wrap: anywhere; }
.registers b { display: inline-block; min-width: 5.5rem; font-weight: 600; color: var(--soft); }
.tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .4rem 0; }
input, select {
  font: inherit; color: inherit; background: var(--panel);
  border: 1px solid var(--line); padding: .25rem .5rem;
}
input { flex: 1 1 14rem; min-width: 0; }
.log {
  background: var(--panel); border: 1px solid var(--line); padding: .5rem; max-height: 34rem; overflow: auto;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.log [data-level="0"], .log [data-level="1"], .log [data-level="2"],
.log [data-level="3"] { color: var(--bad); }
.log [data-level="4"] { color: var(--warn); }
.log [data-level="7"] { color: var(--soft); }
.log [hidden] { display: none; }
@media print { .tools, nav { display: none; } .log { max-height: none; } }
"""

SCRIPT = """
"use strict";
const find = document.getElementById("find");
if (find) {
  const most = document.getElementById("most");
  const told = document.getElementById("shown");
  const records = Array.from(document.querySelectorAll("#records > div"));
  const texts = records.map((each) => each.textContent.toLowerCase());
  const show = () => {
    const words = find.value.toLowerCase(), level = Number(most.value);
    let shown = 0;
    records.forEach((each, index) => {
      const fits = texts[index].includes(words) && Number(each.dataset.level || 0) <= level;
      each.hidden = !fits;
      shown += fits;
    });
    told.textContent = shown + " of " + records.length;
  };
  find.addEventListener("input", show);
  most.addEventListener("change", show);
  show();
}
"""


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "base-uri 'none'; form-action 'none'"
)
"""Of the page: nothing is loaded, and nothing runs but this script."""
