"""A Grafana dashboard as JSON values: the few kinds of panels that `dashboards` needs, laid out from left to right. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 42
"""Grafana 12; an older one reads it too, a newer one brings it up to date by itself."""
COLUMNS = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""
    limit: bool = False
    """A line that others are held against, such as an SLO: drawn dashed, in red."""
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    meaning: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    stacked: bool = False
    most: float | None = None
    least: float | None = 0.0
    steps: Sequence[tuple[float | None, str]] = ()
    """Colours from a value on; the first one has none."""
    mappings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Text and colour of a value."""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]
    repeat: str | None = None
    """The template variable that it is repeated for."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    label: str
    query: str
    multi: bool = True


@dataclass(frozen=True, slots=True)
class Marks:
    """Events drawn into every panel: where `expr` has a value."""

    name: str
    expr: str
    title: str
    text: str
    colour: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    meaning: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    marks: Sequence[Marks] = ()


def render(dashboard: Dashboard) -> Json:
    return {
        "annotations": {"list": [_BUILT_IN_MARKS, *(_marks(marks) for marks in dashboard.marks)]},
        "description": dashboard.meaning,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "links": [_links(dashboard)],
        "panels": _panels(dashboard.rows),
        "preload": False,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["multislo"],
        "templating": {"list": [_DATASOURCE_VARIABLE, *(_variable(v) for v in dashboard.variables), _WINDOW_VARIABLE]},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
        "weekStart": "",
    }


# -- variables, marks, links -----------------------------------------------------------------------------------------------

_DATASOURCE_VARIABLE: Json = {
    "current": {},
    "hide": 0,
    "includeAll": False,
    "label": "Prometheus",
    "multi": False,
    "name": "datasource",
    "options": [],
    "query": "prometheus",
    "refresh": 1,
    "regex": "",
    "type": "datasource",
}
WINDOWS = ("1m", "5m", "15m", "1h", "6h")
_WINDOW_VARIABLE: Json = {
    "auto": False,
    "auto_count": 30,
    "auto_min": "10s",
    "current": {"selected": True, "text": "5m", "value": "5m"},
    "hide": 0,
    "label": "Rates over",
    "name": "window",
    "options": [{"selected": window == "5m", "text": window, "value": window} for window in WINDOWS],
    "query": ",".join(WINDOWS),
    "refresh": 2,
    "type": "interval",
}
_BUILT_IN_MARKS: Json = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}


def _variable(variable: Variable) -> Json:
    return {
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": variable.query,
        "hide": 0,
        "includeAll": True,
        "label": variable.label,
        "multi": variable.multi,
        "name": variable.name,
        "options": [],
        "query": {"query": variable.query, "refId": f"variable-{variable.name}"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def _marks(marks: Marks) -> Json:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": marks.expr,
        "hide": False,
        "iconColor": marks.colour,
        "name": marks.name,
        "step": "",
        "textFormat": marks.text,
        "titleFormat": marks.title,
    }


def _links(dashboard: Dashboard) -> Json:
    return {
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "tags": ["multislo"],
        "targetBlank": False,
        "title": "multislo",
        "tooltip": "",
        "type": "dashboards",
        "url": "",
    }


# -- panels ------------------------------------------------------------------------------------------------------------------


def _panels(rows: Sequence[Row]) -> list[Json]:
    """Rows one below another; panels of a row from left to right, into the next line where they do not fit."""
    rendered: list[Json] = []
    y = 0
    for row in rows:
        rendered.append(_row(row, y, len(rendered) + 1))
        y += 1
        x = line = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            rendered.append(_panel(panel, {"h": panel.height, "w": panel.width, "x": x, "y": y}, len(rendered) + 1))
            x += panel.width
            line = max(line, panel.height)
        y += line
    return rendered


def _row(row: Row, y: int, number: int) -> Json:
    repeat = {"repeat": row.repeat} if row.repeat else {}
    return {
        "collapsed": False,
        "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
        "id": number,
        "panels": [],
        "title": row.title,
        "type": "row",
        **repeat,
    }


def _panel(panel: Panel, place: Json, number: int) -> Json:
    transformations = {"transformations": _AS_TABLE} if panel.kind == "table" else {}
    return {
        "datasource": DATASOURCE,
        "description": panel.meaning,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "gridPos": place,
        "id": number,
        "options": _OPTIONS[panel.kind],
        "targets": [_target(query, panel, index) for index, query in enumerate(panel.queries)],
        "title": panel.title,
        "type": panel.kind,
        **transformations,
    }


def _target(query: Query, panel: Panel, index: int) -> Json:
    instant = query.instant or panel.kind in ("stat", "bargauge", "table")
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "format": "table" if panel.kind == "table" else "time_series",
        "instant": instant,
        "legendFormat": query.legend or "__auto",
        "range": not instant,
        "refId": _ref(index),
    }


def _ref(index: int) -> str:
    return chr(ord("A") + index)


def _defaults(panel: Panel) -> Json:
    steps = panel.steps or ((None, "green"),)
    defaults: Json = {
        "color": {"mode": "thresholds" if panel.steps else "palette-classic"},
        "custom": {**_CUSTOM.get(panel.kind, {})},
        "mappings": _mappings(panel),
        "thresholds": {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]},
        "unit": panel.unit,
    }
    if panel.kind == "timeseries":
        if not panel.mappings:
            defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"]["stacking"] = {"group": "A", "mode": "normal" if panel.stacked else "none"}
        defaults["custom"]["fillOpacity"] = 30 if panel.stacked else 5
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.most is not None:
        defaults["max"] = panel.most
    return defaults


def _mappings(panel: Panel) -> list[Json]:
    if not panel.mappings:
        return []
    options = {
        value: {"color": colour, "index": index, "text": text}
        for index, (value, (text, colour)) in enumerate(panel.mappings.items())
    }
    return [{"options": options, "type": "value"}]


def _overrides(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byFrameRefID", "options": _ref(index)},
            "properties": [
                {"id": "color", "value": {"fixedColor": "red", "mode": "fixed"}},
                {"id": "custom.lineStyle", "value": {"dash": [10, 10], "fill": "dash"}},
                {"id": "custom.fillOpacity", "value": 0},
                {"id": "custom.stacking", "value": {"group": "A", "mode": "none"}},
            ],
        }
        for index, query in enumerate(panel.queries)
        if query.limit
    ]


_CUSTOM: dict[str, Json] = {
    "timeseries": {
        "axisBorderShow": False,
        "axisPlacement": "auto",
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "pointSize": 4,
        "showPoints": "auto",
        "spanNulls": False,
    },
    "state-timeline": {"fillOpacity": 80, "lineWidth": 0},
    "table": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True},
}
_LAST: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": _LAST,
        "textMode": "value_and_name",
    },
    "bargauge": {
        "displayMode": "gradient",
        "orientation": "horizontal",
        "reduceOptions": _LAST,
        "showUnfilled": True,
        "valueMode": "color",
    },
    "state-timeline": {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "never",
        "tooltip": {"mode": "single", "sort": "none"},
    },
    "table": {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True},
}
_AS_TABLE: list[Json] = [
    {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}}
]
