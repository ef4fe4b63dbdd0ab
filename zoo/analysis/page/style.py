"""The style sheet of the pages, light and dark, from a phone's width up."""

_LIGHT = """--ground:#fbfbfa;--card:#ffffff;--ink:#1d2126;--soft:#5a626c;--line:#dfe3e8;--accent:#1f5fa8;
--c0:#1f5fa8;--c1:#c2410c;--c2:#15803d;--c3:#7e22ce;--c4:#a16207;--c5:#0e7490;--c6:#be185d;--c7:#4d7c0f;--c8:#57534e;
--c9:#4338ca;--heat:31,95,168;--good:#15803d;--bad:#b91c1c;--shade:rgba(0,0,0,.32)"""
_DARK = """--ground:#14171b;--card:#1c2026;--ink:#e8eaed;--soft:#a7afb9;--line:#343a43;--accent:#8ab8f0;
--c0:#6ea8ef;--c1:#f79361;--c2:#5fc98b;--c3:#c79af2;--c4:#e0b64a;--c5:#5cc5dc;--c6:#f08cbc;--c7:#a9d15f;--c8:#b5aea8;
--c9:#9aa2f5;--heat:110,168,239;--good:#5fc98b;--bad:#f28b82;--shade:rgba(255,255,255,.34)"""

_SERIES = "".join(f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}" for i in range(10))
_HEAT = "".join(f".h{i}{{background:rgba(var(--heat),{i / 10:.1f})}}" for i in range(11))
_HEAT += ".h7,.h8,.h9,.h10{color:#fff}@media(prefers-color-scheme:dark){.h6,.h7,.h8,.h9,.h10{color:#0d1014}}"

STYLE = (
    f":root{{{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}".replace("\n", "")
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,nav,footer{max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .75rem}
h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
.soft,figcaption,caption{color:var(--soft)}
a{color:var(--accent)}
a:focus-visible,summary:focus-visible,button:focus-visible,.scroll:focus-visible,
select:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--card);padding:.4rem .8rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:1rem 0 1.4rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.25rem 1.4rem;margin:0 0 1.2rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:0;padding:0}
.tiles div{border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}
.tiles dt{color:var(--soft);font-size:.85rem}.tiles dd{margin:0;font-size:1.45rem;font-variant-numeric:tabular-nums}
.tiles dd small{font-size:.8rem;color:var(--soft);display:block}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.2rem}
figure{margin:0}figcaption{font-size:.88rem;margin-top:.3rem}
svg.chart{width:100%;height:auto;display:block}
svg.chart text{fill:var(--soft);font-size:12px}
svg.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
svg.chart .grid{stroke:var(--line);stroke-width:1}
svg.chart .axis,svg.chart .guide{stroke:var(--soft);stroke-width:1}svg.chart .guide{stroke-dasharray:4 4}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:0;margin:.3rem 0 0;font-size:.88rem}
.key{display:inline-block;width:.9rem;height:.9rem;border-radius:3px;margin-right:.4rem;vertical-align:-.12rem}
.scroll{overflow-x:auto;
background:linear-gradient(90deg,var(--card) 30%,transparent) left/2.5rem 100% no-repeat local,
linear-gradient(-90deg,var(--card) 30%,transparent) right/2.5rem 100% no-repeat local,
linear-gradient(90deg,var(--shade),transparent) left/.9rem 100% no-repeat scroll,
linear-gradient(-90deg,var(--shade),transparent) right/.9rem 100% no-repeat scroll}
.scroll::-webkit-scrollbar{height:.5rem}
.scroll::-webkit-scrollbar-thumb{background:var(--soft);border-radius:.25rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;font-size:.88rem;padding-bottom:.4rem}
th,td{padding:.28rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{color:var(--soft);font-weight:600}
th[scope=row]{font-weight:500;overflow-wrap:anywhere;min-width:4.5rem}
td.number,th.number{text-align:right;white-space:nowrap}
table.confusion td,table.confusion th{padding:.3rem .45rem;text-align:center;border:1px solid var(--card)}
table.confusion th[scope=row]{text-align:right}
table.confusion .none{color:transparent}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17.6rem),1fr));gap:1rem;padding:0;
list-style:none;margin:.6rem 0 0}
.grid.wide{grid-template-columns:1fr}.grid h3{margin:0 0 .5rem;overflow-wrap:anywhere}
.grid>li{border:1px solid var(--line);border-radius:10px;padding:.75rem}
.strip{display:flex;flex-wrap:wrap;gap:.4rem}
.strip figure{font-size:.8rem;max-width:5.2rem}.strip figcaption{overflow-wrap:anywhere}
img{max-width:100%;height:auto;border-radius:4px}
img.pixels{image-rendering:pixelated}
code,pre{font:.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--ground);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
summary{cursor:pointer;font-weight:600;padding:.2rem 0}
.bad{color:var(--bad)}.good{color:var(--good)}
ul.plain{padding-left:1.2rem;margin:.4rem 0}
footer{color:var(--soft);font-size:.88rem;padding-bottom:2.5rem}
@media(max-width:40rem){section{padding:1rem .9rem;border-radius:8px}
main,header,nav,footer{padding-left:.7rem;padding-right:.7rem}h1{font-size:1.4rem}
svg.chart text{font-size:15px}}
@media print{section{break-inside:avoid}nav{display:none}}
"""
    + _SERIES
    + _HEAT
)
for _i in range(10):
    STYLE += f".k{_i}{{background:var(--c{_i})}}"
