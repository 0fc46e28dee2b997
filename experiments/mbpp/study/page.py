"""report.html: the Markdown report as one file that opens without a network."""
import html
import re

import markdown

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 12px; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 3px 6px; text-align: left }
th { background: #f2f2f2 } svg { max-width: 100%; height: auto } code { overflow-wrap: anywhere }
"""


def own_names(svg, name):
    """Ids and references get a prefix: several pictures in one page must not share any."""
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)


def page(text, plots, claims):
    """text: the report; plots: {name: SVG}; claims: listed at the end."""
    body = markdown.markdown(text, extensions=["tables"])
    for name, svg in plots.items():
        body = re.sub(rf'<img [^>]*src="{name}\.svg"[^>]*>', lambda _: own_names(svg, name), body)
    rows = "".join(f"<tr><td><code>{claim.id}</code></td>"
                   f"<td>{html.escape(claim.text, quote=False)}</td>"
                   f"<td>{html.escape(claim.file)}</td></tr>" for claim in claims.values())
    title = re.search(r"<h1>(.*?)</h1>", body)[1]
    return (f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f"<style>{STYLE}</style>\n{body}\n<h2>Every figure</h2>\n<p>Each is computed again by "
            "<code>python3 -m study.claims RESULTS --claim ID</code> in experiments/mbpp, from the "
            f"file named.</p>\n<table><tr><th>ID</th><th>statement</th><th>file</th></tr>{rows}"
            "</table>\n</html>\n")
