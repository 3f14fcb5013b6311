"""The API's reference as Markdown, made of the OpenAPI document, so that it says what the service does."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Part = Mapping[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
REF = "#/components/schemas/"


def reference(document: Part) -> str:
    """Return one section for each group of operations, one for what receivers get, one for the shapes."""
    return "\n".join([*_operations(document), *_webhooks(document), *_shapes(document)]) + "\n"


def _operations(document: Part) -> Iterator[str]:
    groups: dict[str, list[tuple[str, str, Part]]] = {tag["name"]: [] for tag in document.get("tags", [])}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                groups.setdefault(operations[method]["tags"][0], []).append((method, path, operations[method]))
    descriptions = {tag["name"]: tag.get("description", "") for tag in document.get("tags", [])}
    for name, members in groups.items():
        if not members:
            continue
        yield f"## {name[0].upper()}{name[1:]}\n"
        if descriptions.get(name):
            yield f"{descriptions[name]}\n"
        for method, path, operation in members:
            yield from _operation(f"{method.upper()} {path}", operation)


def _operation(line: str, operation: Part) -> Iterator[str]:
    yield f"### {operation['summary']}\n"
    yield f"```http\n{line}\n```\n"
    if operation.get("description"):
        yield f"{operation['description']}\n"
    if parameters := operation.get("parameters"):
        rows = ((f"`{item['name']}`", item["in"], *_field(item["schema"], item)) for item in parameters)
        yield from _table(("parameter", "in", "type", ""), rows)
    yield from _content("The body is", operation.get("requestBody", {}))
    if "responses" not in operation:
        return
    yield from _table(
        ("status", "", "body"),
        (
            (f"`{status}`", answer.get("description", ""), _body(answer))
            for status, answer in operation["responses"].items()
        ),
    )
    for status, answer in operation["responses"].items():
        # One answer of success shows the shape; the errors all look alike.
        if status.startswith("2") and (example := _example(answer)):
            yield f"For instance, `{status}`:\n\n{example}"
            break


def _webhooks(document: Part) -> Iterator[str]:
    if not document.get("webhooks"):
        return
    yield "## What a receiver gets\n"
    for operations in document["webhooks"].values():
        for method, operation in operations.items():
            yield from _operation(f"{method.upper()} (the URL of the timer)", operation)


def _shapes(document: Part) -> Iterator[str]:
    yield "## Shapes\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"### {name}\n"
        if schema.get("description"):
            yield f"{schema['description']}\n"
        if "enum" in schema:
            yield "One of " + ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"]) + ".\n"
        if properties := schema.get("properties"):
            required = schema.get("required", [])
            yield from _table(
                ("field", "type", ""),
                (
                    (f"`{field}`" + (" (required)" if field in required else ""), *_field(member, member))
                    for field, member in properties.items()
                ),
            )


def _content(lead: str, body: Part) -> Iterator[str]:
    if not body:
        return
    kinds: dict[str, list[str]] = {}
    for kind, content in body["content"].items():
        kinds.setdefault(_type(content["schema"]), []).append(f"`{kind}`")
    yield f"{lead} " + "; ".join(f"{shape} as {', '.join(names)}" for shape, names in kinds.items()) + ".\n"
    if example := _example(body):
        yield f"For instance:\n\n{example}"


def _body(answer: Part) -> str:
    return ", ".join(dict.fromkeys(_type(content["schema"]) for content in answer.get("content", {}).values()))


def _example(body: Part) -> str:
    for kind, content in body.get("content", {}).items():
        if "json" in kind:
            for example in content.get("examples", {}).values():
                return f"```json\n{json.dumps(example['value'], indent=2, ensure_ascii=False)}\n```\n"
    return ""


def _field(schema: Part, described: Part) -> tuple[str, str]:
    """Return the type and the description of a field or parameter, with its bounds."""
    # The list of an enum's values is repeated by drf-spectacular below a description; the type links to it.
    text = described.get("description", "").partition("\n\n* `")[0]
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("maximum", "to"),
            ("maxLength", "up to characters:"),
            ("maxItems", "up to entries:"),
            ("maxProperties", "up to keys:"),
        )
        if key in schema and schema[key] not in (0, 2147483647)
    ]
    if "default" in schema:
        bounds.append(f"default `{json.dumps(schema['default'])}`")
    return _type(schema), text + (f" ({', '.join(bounds)})" if bounds else "")


def _type(schema: Part) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REF)
        return f"[{name}](#{name.lower()})"
    for word in ("allOf", "oneOf", "anyOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_type(member) for member in schema[word]))
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any JSON")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    lines = [" | ".join(_cell(cell) for cell in row) for row in rows]
    if lines:
        separator = " | ".join("---" for _ in head)
        yield "\n".join(f"| {line} |" for line in (" | ".join(head), separator, *lines)) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
