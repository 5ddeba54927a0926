"""The manifest's part about the router: its processes, its ports, its clients' keys and the paths that it passes on. Part of
`multislo_api.kind`."""

from typing import Annotated, Literal

from pydantic import Field

from multislo_api.duration import Duration
from multislo_api.scalars import FilePath, Legal, ObjectName, Part, PodTemplate, Port


class ApiKeys(Part):
    """Where the router finds the keys that it accepts as `Authorization: Bearer`: one a line, lines that begin with # are comments. Exactly
    one of the three."""

    secret: ObjectName | None = Field(
        default=None, description="Kubernetes Secret in the manifest's namespace. Default: none."
    )
    file: FilePath | None = Field(
        default=None, description="File on this machine, relative to the manifest's folder. Default: none."
    )
    env: (
        Annotated[
            str,
            Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
            Legal("an environment variable's name: 1 to 253 letters, digits and _, not beginning with a digit"),
        ]
        | None
    ) = Field(default=None, description="Environment variable of the router. Default: none.")


class PassedPath(Part):
    """A path of the engines that clients may reach."""

    path: Annotated[
        str,
        Field(min_length=2, max_length=253, pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$"),
        Legal(
            'a path such as /v1/thing: each part begins with "/" and has letters, digits, "-", "_", "~" and, not first, "."'
        ),
    ] = Field(description="The whole path, as the engine spells it. Patterns are not supported.")
    methods: list[Literal["GET", "POST", "PUT", "PATCH", "DELETE"]] = Field(
        default=["POST"],
        min_length=1,
        max_length=5,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Methods that are passed on; GET includes HEAD. Default: POST.",
    )


Origin = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^([*]|[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._:\[\]-]+)$"),
    Legal("an origin such as https://app.example.com or http://localhost:3000, without a path, or * for any"),
]


class Cors(Part):
    """Web pages of which origins may read the answers."""

    origins: list[Origin] = Field(
        min_length=1,
        max_length=64,
        description="Origins (scheme, host, port) of the pages, or * for any page. Credentials such as cookies are never allowed.",
    )


class Router(Part):
    """The router, where clients connect."""

    replicas: int = Field(default=1, ge=1, le=32, description="Router processes. Default: 1.")
    port: Port = Field(default=8000, description="TCP port of the OpenAI API. Default: 8000.")
    admin_port: Port = Field(
        default=9090, description="TCP port of metrics, fleet and health; different from port. Default: 9090."
    )
    pod_template: PodTemplate = Field(
        default={},
        description="Changes to the routers' pod template, applied like engine.podTemplate. Default: none.",
    )
    api_keys: ApiKeys | None = Field(
        default=None, description="Keys of which clients must send one. Default: none, so clients need no key."
    )
    body_max_mib: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Largest request body in MiB; a body is held until an engine has taken it. An image of 20 MiB needs 27. Default: 32.",
    )
    requests_max_mib: int = Field(
        default=512,
        ge=32,
        le=1_048_576,
        description="Memory in MiB for all requests that a router process holds, the bodies that are still arriving included; at least "
        "bodyMaxMib. Beyond it, bodies of more than 16 KiB get 503 with Retry-After. Default: 512.",
    )
    idle_timeout_s: Annotated[float, Duration(most_s=86_400, least_s=1)] = Field(
        default=620.0,
        alias="idleTimeout",
        description="How long a client's connection may be idle before the router closes it, a duration. It has to be longer than the idle "
        "timeout of a load balancer in front; Google's is 600s. Default: 10m20s.",
    )
    stream_keep_alive_s: Annotated[float, Duration(most_s=3600)] = Field(
        default=15.0,
        alias="streamKeepAlive",
        description="How long a streaming answer may be silent before the router sends a comment (: keep-alive), and again after each such "
        "time, so that proxies with a timeout do not close it; a duration. 0s: never. Default: 15s.",
    )
    shutdown_delay_s: Annotated[float, Duration(most_s=600)] = Field(
        default=5.0,
        alias="shutdownDelay",
        description="How long a router that is told to stop serves on as before, while its health checks fail and its answers close their "
        "connections, so that load balancers send to others first; a duration. A balancer with health checks of its own needs as long as "
        "it takes to notice. Default: 5s.",
    )
    cors: Cors | None = Field(
        default=None,
        description="Lets web pages of other origins use the API from a browser. Default: none, browsers keep the answers from them.",
    )
    paths: list[PassedPath] = Field(
        default=[],
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["path"]},
        description="More paths of the engines that clients may reach, in addition to those in docs/http.md. They are not scheduled. An "
        "administrative path of an engine that is listed here is open to every client. Default: none.",
    )
