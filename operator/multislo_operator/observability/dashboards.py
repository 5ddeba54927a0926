"""The three dashboards: what users feel, what the fleet does about it, and what the router costs and believes. Pure."""

from multislo_operator.observability.grafana import Dashboard, Marks, Variable
from multislo_operator.observability.panels_fleet import ROWS as FLEET_ROWS
from multislo_operator.observability.panels_router import ROWS as ROUTER_ROWS
from multislo_operator.observability.panels_slo import ROWS as SLO_ROWS
from multislo_operator.observability.promql import counted, of_fleet, of_tier

NAMESPACE = Variable("namespace", "Namespace", "label_values(multislo_build_info, namespace)")
FLEET = Variable("fleet", "Fleet", 'label_values(multislo_build_info{namespace=~"$namespace"}, fleet)')
TIER = Variable(
    "tier",
    "Tier",
    'label_values(multislo_slo_time_per_output_token_seconds{namespace=~"$namespace",fleet=~"$fleet"}, tier)',
)
HOME = Variable("tier", "Home tier", 'label_values(multislo_instances{namespace=~"$namespace",fleet=~"$fleet"}, tier)')
"""With the warm pool."""

_DECIDED = counted(
    of_fleet("multislo_operator_scaling_decisions_total"), "namespace, fleet, tier, action, reason", "$__rate_interval"
)
_DECISIONS = Marks(
    name="Scaling decisions",
    expr=f"{_DECIDED} > 0",
    title="{{action}}: {{fleet}} {{tier}}",
    text="{{reason}}",
    colour="blue",
)
_HOLDS = Marks(
    name="Holds",
    expr=f"max by (namespace, fleet, tier, cause) ({of_fleet('multislo_operator_holds')}) > 0",
    title="held: {{fleet}} {{tier}}",
    text="{{cause}}",
    colour="orange",
)
_REFUSALS = Marks(
    name="Refusals",
    expr=f"sum by (namespace, fleet, tier, cause) (increase({of_tier('multislo_refusals_total')}[$__rate_interval])) > 0",
    title="refused: {{fleet}} {{tier}}",
    text="{{cause}}",
    colour="red",
)

DASHBOARDS = (
    Dashboard(
        uid="multislo-slo",
        title="multislo: SLO per tier",
        meaning="What each tier's requests get, against its SLO.",
        variables=(NAMESPACE, FLEET, TIER),
        rows=SLO_ROWS,
        marks=(_DECISIONS, _REFUSALS),
    ),
    Dashboard(
        uid="multislo-fleet",
        title="multislo: fleet and scaling",
        meaning="Instances, their loads, the budget, and what was decided why.",
        variables=(NAMESPACE, FLEET, HOME),
        rows=FLEET_ROWS,
        marks=(_DECISIONS, _HOLDS),
    ),
    Dashboard(
        uid="multislo-router",
        title="multislo: router's own cost and its predictions",
        meaning="What the router takes for itself, and how right its latency model is.",
        variables=(NAMESPACE, FLEET, TIER),
        rows=ROUTER_ROWS,
        marks=(_DECISIONS,),
    ),
)
