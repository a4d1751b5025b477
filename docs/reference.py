"""Tables of the reference pages, made from the code when the site is built: `<!-- table: NAME -->` becomes NAME()."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import metadata
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel

import campaign
import pipeline
from feature_repo.contracts import LOGS

MARKER = re.compile(r"<!-- table: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls for every page."""
    return MARKER.sub(lambda found: TABLES[found[1]](), markdown)


def commands() -> str:
    """Every command with its arguments and options, from Typer."""
    return "\n\n".join(_command(name, command) for name, command in walk_commands())


def walk_commands() -> Iterator[tuple[str, Any]]:
    """Full name and click command of everything that `tactful` can do."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
            return
        for part, child in inner.items():
            yield from walk(f"{name} {part}", child)

    yield from walk("tactful", typer.main.get_command(pipeline.app))


def _command(name: str, command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        words = " / ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.name.upper()
        known = parameter.default is not None and not callable(parameter.default)
        needed = "required" if parameter.required else str(parameter.default) if known else ""
        rows.append((f"`{words}`", getattr(parameter, "help", "") or "", needed))
    table = _table(("argument or option", "meaning", "default"), rows) if rows else ""
    return f"## `{name}`\n\n{inspect.cleandoc(command.help or '')}\n\n{table}"


def campaign_keys() -> str:
    """Every key of campaign.toml: type and limits from pydantic, the shipped value and its comment from the file."""
    parts = []
    for name, field in campaign.Campaign.model_fields.items():
        model, listed = _model_of(field.annotation)
        if model is None:
            parts.append(f"## `{name}`\n\n{_type(field)}. As shipped: `{_shipped()[''][name][0]}`.")
            continue
        head = f"[[{name}]]" if listed else f"[{name}]"
        shipped = _shipped().get(name, {})
        rows = [
            (
                f"`{key}`",
                _type(inner),
                *(_code(text) for text in shipped.get(key, ("", ""))[:1]),
                shipped.get(key, ("", ""))[1],
            )
            for key, inner in model.model_fields.items()
        ]
        about = inspect.cleandoc(model.__doc__ or "").replace("\n\n", "\n")
        parts.append(f"## `{head}`\n\n{about}\n\n" + _table(("key", "type", "as shipped", "meaning"), rows))
    return "\n\n".join(parts)


def log_map_keys() -> str:
    """Every key of logs.toml, from its models."""
    from feature_repo import log_map

    parts = []
    for head, model in (
        ("The file", log_map.LogMap),
        ("`[users]`, `[sessions]`, `[messages]`, `[subscriptions]`", log_map.Table),
        ("`[decisions]`, beside those", log_map.Decisions),
        ("A column", log_map.Source),
    ):
        inherited = log_map.Table.model_fields if model is log_map.Decisions else {}
        rows = [
            (f"`{key}`", _map_type(key, field))
            for key, field in model.model_fields.items()
            if key not in inherited and key not in (*LOGS, "decisions")
        ]
        about = inspect.cleandoc(model.__doc__ or "").replace("\n\n", "\n")
        parts.append(f"## {head}\n\n{about}\n\n" + _table(("key", "type"), rows))
    return "\n\n".join(parts)


def _map_type(key: str, field: Any) -> str:
    if key in ("columns", "propensities"):
        return "a column each" + ("" if field.is_required() else "; optional")
    found = _type(field).replace("dict[text, text]; default {}", "a table; optional").replace("bool", "true, false")
    found = re.sub(r"Optional\[Literal\['(.*)'\]\]", lambda words: words[1].replace("', '", ", "), found)
    return found.replace(" or None", "").replace("; default None", "; optional")


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The nested model of a field, and whether the field is a list of it."""
    if get_origin(annotation) is tuple:
        return _model_of(get_args(annotation)[0])[0], True
    return (annotation, False) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else (None, False)


def _type(field: Any) -> str:
    """Type, limits and default of a pydantic field in words."""
    if get_origin(field.annotation) is not None and str(get_origin(field.annotation)).endswith("Literal'>"):
        kind = " or ".join(f"`{value}`" for value in get_args(field.annotation))
    else:
        words = str(field.annotation).replace("<class '", "").replace("'>", "").replace("typing.", "")
        words = re.sub(r"tuple\[Annotated.*|tuple\[str.*", "list of names", words)
        words = "one of " + words[len("Literal") :] if words.startswith("Literal") else words
        kind = words.replace("|", "or").replace("str", "text").replace("int", "whole number").replace("float", "number")
    limits = []
    for rule in field.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if getattr(rule, attribute, None) is not None:
                limits.append(f"{sign} {getattr(rule, attribute):g}")
    optional = "" if field.is_required() else f"; default {field.default}"
    return kind + (f", {', '.join(limits)}" if limits else "") + optional


def _shipped() -> dict[str, dict[str, tuple[str, str]]]:
    """Section -> key -> (value, comment) of campaign.toml; of repeated sections the first that has the key."""
    found: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    section = ""
    for line in (campaign.ROOT / "campaign.toml").read_text(encoding="utf-8").splitlines():
        if head := re.match(r"\[+(\w+)\]+", line):
            section = head[1]
        elif pair := re.match(r"(\w+) = ([^#]+?)\s*(?:# (.*))?$", line):
            found.setdefault(section, {}).setdefault(pair[1], (pair[2], pair[3] or ""))
    return found


def tables() -> str:
    """Contracts of the raw logs and of the decision log."""
    from bentos.decision_log import SCHEMA
    from feature_repo.contracts import DECISIONS

    parts = []
    for contract in (*LOGS.values(), DECISIONS):
        types = {name: str(SCHEMA.field(name).type) for name in contract.columns} if contract is DECISIONS else {}
        rows = [
            (f"`{name}`", types.get(name, column.kind), "yes" if column.nullable else "", _bounds(column))
            for name, column in contract.columns.items()
        ]
        key = ", ".join(f"`{name}`" for name in contract.key)
        about = f"Key: {key}. Partitioned by the UTC date of `{contract.partition_by}`."
        parts.append(f"## `{contract.name}`\n\n{about}\n\n" + _table(("column", "type", "may be null", "values"), rows))
    return "\n\n".join(parts)


def _bounds(column: Any) -> str:
    if column.categories:
        return ", ".join(f"`{value}`" for value in column.categories)
    signs = ((column.above, ">"), (column.minimum, ">="), (column.maximum, "<="))
    return ", ".join(f"{sign} {value:g}" for value, sign in signs if value is not None)


def features() -> str:
    """Every feature of the service `uplift_v1`, by view."""
    from feature_repo import views

    found = [view for view in vars(views).values() if type(view).__name__ == "FeatureView"]
    rows = [
        (
            f"`{field.name}`",
            "text" if str(field.dtype) == "String" else "number",
            f"`{view.name}`",
            f"{view.ttl.days} days",
        )
        for view in found
        for field in sorted(view.schema, key=lambda field: field.name)
        if field.name not in {"user_id"}
    ]
    return _table(("feature", "type", "view", "good for"), rows)


def decide() -> str:
    """Fields of the request and of the answer."""
    from bentos import schemas

    parts = []
    for model in (schemas.DecideRequest, schemas.Context, schemas.DecideResponse, schemas.Decision):
        rows = [(f"`{name}`", _words(field), field.description or "") for name, field in model.model_fields.items()]
        about = inspect.cleandoc(model.__doc__ or "")
        parts.append(f"### {model.__name__}\n\n{about}\n\n" + _table(("field", "type", "meaning"), rows))
    return "\n\n".join(parts)


def _words(field: Any) -> str:
    if get_origin(field.annotation) is not None and "Reason" in str(field.annotation):
        return "a reason"
    text = re.sub(r"Literal\[.*\]", "a reason, below", str(field.annotation))
    text = re.sub(r"Annotated\[(\w+),[^\[\]]*(?:\[[^\]]*\])*[^\]]*\]", r"\1", text)
    text = text.replace("<class '", "").replace("'>", "").replace("bentos.schemas.", "").replace("typing.", "")
    return f"`{text}`" + ("" if field.is_required() else ", optional")


def reasons() -> str:
    """Every reason of a decision."""
    from feature_repo.contracts import MEANING

    return _table(("reason", "meaning"), [(f"`{name}`", meaning) for name, meaning in MEANING.items()])


def metrics() -> str:
    """Every metric of the service."""
    from prometheus_client.metrics import MetricWrapperBase

    from bentos import metrics as module

    found = [value for value in vars(module).values() if isinstance(value, MetricWrapperBase)]
    rows = [
        (
            f"`{metric._name}`",
            metric._type,
            ", ".join(f"`{label}`" for label in metric._labelnames),
            metric._documentation,
        )
        for metric in found
    ]
    return _table(("metric", "type", "labels", "meaning"), rows)


def settings() -> str:
    """Every environment variable of the service."""
    from bentos.settings import Settings

    about = inspect.getdoc(Settings) or ""
    rows = []
    for name, default in Settings().__dict__.items():
        said = re.search(rf"^\s*(?:\w+, )*{name}(?:, \w+)*: (.*)$", about, re.MULTILINE)
        rows.append(
            (f"`TACTFUL_{name.upper()}`", said[1] if said else "", f"`{default}`" if default != "" else "empty")
        )
    return _table(("variable", "meaning", "default"), rows)


def exit_codes() -> str:
    """From the help of the command."""
    lines = (pipeline.__doc__ or "").split("Exit codes:\n")[1].splitlines()
    rows = [tuple(line.split(None, 1)) for line in lines if line.strip()]
    return _table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in rows])


def errors() -> str:
    """The tree of errors, as campaign.py draws it."""
    return "```text\n" + (campaign.__doc__ or "").split("\n\n", 1)[1].strip() + "\n```"


def licences() -> str:
    """Every package of the lock with the licence that its own metadata states."""
    rows = []
    for line in (campaign.ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if version:
            rows.append((name, version, _licence(metadata(name))))
    return _table(("package", "version", "licence"), rows)


def _licence(about: Any) -> str:
    """The SPDX expression, else the classifiers, else the first line of free text."""
    classified = [
        text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or () if text.startswith("License")
    ]
    text = next(iter((about["License"] or "").strip().splitlines()), "")
    return about["License-Expression"] or ", ".join(classified) or text[:60] or "not stated"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: Mapping[str, Any] = {
    function.__name__: function
    for function in (
        commands,
        campaign_keys,
        log_map_keys,
        tables,
        features,
        decide,
        reasons,
        metrics,
        settings,
        exit_codes,
        errors,
        licences,
    )
}
