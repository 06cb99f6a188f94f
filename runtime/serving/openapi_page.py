"""An OpenAPI document as a page for people: one file, without scripts, and without anything from elsewhere."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #06c; }
@media (prefers-color-scheme: dark) { :root { --link: #7bf; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2rem 0 .25rem; }
h4 { margin: 1rem 0 .25rem; }
p { margin: .25rem 0 .5rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, monospace; font-size: .875em; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
td:last-child { min-width: 14rem; }
.method { font-weight: 600; margin-right: .5rem; }
nav ul { columns: 18rem; padding-left: 1.2rem; }
"""
_CODE = re.compile(r"`([^`]+)`")
#: more values than these are named nowhere but in the document
_MOST_VALUES = 40


def page(document: Mapping[str, Any]) -> str:
    """The page's HTML."""
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>", _prose(info.get("description", ""))]
    parts.append(_security(document))
    parts.append(_contents(document))
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'].capitalize())}</h2>{_prose(tag.get('description', ''))}")
        parts += [_operation(*found, document) for found in _operations(document) if tag["name"] in found[2]["tags"]]
    parts.append("<h2>Bodies</h2>")
    parts += [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(info['title'])}: API</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _operations(document: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Method, path and description of each."""
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _contents(document: Mapping[str, Any]) -> str:
    found = "".join(
        f'<li><a href="#{escape(operation["operationId"])}"><code>{method} {escape(path)}</code></a></li>'
        for method, path, operation in _operations(document)
    )
    return f'<nav aria-label="Routes"><ul>{found}</ul></nav>'


def _security(document: Mapping[str, Any]) -> str:
    schemes = document["components"].get("securitySchemes", {})
    if not schemes:
        return ""
    rows = [(f"<code>{escape(each['scheme'])}</code>", _inline(each["description"])) for each in schemes.values()]
    return f"<h2>Keys</h2>{_table(('Authorization', ''), rows)}"


def _operation(method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    parts = [
        f'<section id="{escape(operation["operationId"])}">',
        f'<h3><span class="method">{method}</span><code>{escape(path)}</code></h3>',
        _prose(operation["summary"]),
    ]
    if parameters := operation.get("parameters"):
        rows = [
            (f"<code>{escape(each['name'])}</code>", escape(each["in"]), _inline(each["description"]))
            for each in parameters
        ]
        parts.append(f"<h4>Parameters</h4>{_table(('Name', 'In', ''), rows)}")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body: <code>{escape(kind)}</code></h4>{_fields(_resolved(content['schema'], document))}")
        examples = content.get("examples", {}).values()
        parts += [f"<p>{escape(each['summary'])}:</p>{_pre(json.dumps(each['value']))}" for each in examples]
    parts.append(f"<h4>Answers</h4>{_answers(operation['responses'])}</section>")
    return "\n".join(parts)


def _answers(responses: Mapping[str, Any]) -> str:
    rows = []
    for status, response in responses.items():
        bodies = []
        for kind, content in response.get("content", {}).items():
            bodies.append(f"<code>{escape(kind)}</code> {_type(content.get('schema', {}))}".strip())
            bodies += [
                f"<code>{escape(event)}</code> {_type(each)}" for event, each in content.get("x-events", {}).items()
            ]
        rows.append((f"<code>{escape(status)}</code>", "<br>".join(bodies), _inline(response["description"])))
    return _table(("Status", "Body", ""), rows)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    heading = f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
    return f"{heading}{_prose(schema.get('description', ''))}{_fields(schema)}</section>"


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(name)}</code>{' (required)' if name in required else ''}",
            _type(each),
            _inline(" ".join(filter(None, (each.get("description", ""), _limits(each))))),
        )
        for name, each in schema.get("properties", {}).items()
    ]
    return _table(("Field", "Type", ""), rows)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#schema-{name}">{name}</a>'
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    kind = schema.get("type", "")
    if kind == "array":
        return f"array of {_type(schema['items'])}"
    if schema.get("format") == "binary":
        return "file"
    return escape(kind if isinstance(kind, str) else " or ".join(kind))


def _limits(schema: Mapping[str, Any]) -> str:
    """What a value may be, and what it is if it is not given."""
    found = []
    values = [value for value in schema.get("enum", ()) if value is not None]
    if 0 < len(values) <= _MOST_VALUES:
        found.append(", ".join(f"`{value}`" for value in values) + ".")
    if "minimum" in schema:
        found.append(f"{schema['minimum']} to {schema['maximum']}." if "maximum" in schema else "")
    if "exclusiveMinimum" in schema:
        found.append(f"Above {schema['exclusiveMinimum']}, to {schema['maximum']}.")
    if "maxLength" in schema:
        found.append(f"At most {schema['maxLength']} characters.")
    if "default" in schema:
        found.append(f"If not given: `{json.dumps(schema['default'])}`.")
    if "properties" in schema:
        found.append(", ".join(f"`{name}`" for name in schema["properties"]) + ".")
    return " ".join(filter(None, found))


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    found: Mapping[str, Any] = document["components"]["schemas"].get(name, schema)
    return found


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are HTML."""
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _prose(text: str) -> str:
    return f"<p>{_inline(text)}</p>" if text else ""


def _inline(text: str) -> str:
    """A line of HTML; what stands between backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
