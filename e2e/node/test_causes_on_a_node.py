"""Why a fleet does not start, in a real kubelet's words; and a fleet whose pods run as a user that no image knows, as on OpenShift."""

import copy
from typing import Any

import openai

from cluster.api import Object
from cluster.node import NodeCluster
from cluster.scene import Scene, condition, wait_for
from node.conftest import ANY_USER
from node.test_operator_on_a_node import FLEET


def changed(part: str, **fields: Any) -> Object:
    made = copy.deepcopy(FLEET)
    made["spec"][part] = {**made["spec"].get(part, {}), **fields}
    return made


async def says(scene: Scene, reason: str, words: str) -> None:
    async def so() -> None:
        found = condition(scene.get("mslo", "llama"), "Ready")
        assert found.get("reason") == reason, found
        assert words in found["message"], found

    await wait_for(f"Ready says {reason}", so)


async def test_a_secret_that_is_not_there_is_named_and_its_coming_heals_the_router(operated: Scene) -> None:
    operated.apply(changed("router", apiKeys={"secret": "nobody-made-it"}))
    await says(operated, "ConfigMissing", 'secret "nobody-made-it" not found')

    operated.kubectl("create", "secret", "generic", "nobody-made-it", "--from-literal=api-keys=a-key")

    await says(operated, "Serving", "")


async def test_an_image_that_cannot_be_pulled_and_a_crash_are_told_with_their_words(operated: Scene) -> None:
    def over(**container: Any) -> Object:
        return changed("engine", podTemplate={"spec": {"containers": [{"name": "engine", **container}]}})

    operated.apply(over(image="localhost/no-such-image:1", imagePullPolicy="Never"))
    await says(operated, "ImagePullFailed", "localhost/no-such-image:1")

    failing = {"name": "fetch", "image": "IMAGE", "command": ["python", "-c", "raise SystemExit('no weights here')"]}
    operated.kubectl("delete", "mslo", "llama")
    pod = (await operated.pods(**{"app.kubernetes.io/component": "router"}))[0]
    failing["image"] = pod["spec"]["containers"][0]["image"]
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    init = {**failing, "securityContext": security, "terminationMessagePolicy": "FallbackToLogsOnError"}
    operated.apply(changed("engine", podTemplate={"spec": {"initContainers": [init]}}))
    await says(operated, "InitFailing", "no weights here")


async def test_a_fleet_serves_as_whatever_user_its_namespace_gives(operated: Scene, node_cluster: NodeCluster) -> None:
    template = {"spec": {"securityContext": ANY_USER}}
    wanted = changed("engine", podTemplate=template)
    wanted["spec"]["router"] = {"podTemplate": template}
    operated.apply(wanted)
    await says(operated, "Serving", "")

    base = f"http://{node_cluster.open_service(operated.namespace, 'llama', 8000)}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=60) as client:
        answer = await client.chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "Hello"}], max_tokens=9
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    for pod in await operated.pods(**{"app.kubernetes.io/instance": "llama"}):
        name = pod["metadata"]["name"]
        said = operated.kubectl("exec", name, "--", "python", "-c", "import os; print(os.getuid(), os.getgid())")
        assert said.split() == [str(ANY_USER["runAsUser"]), "0"], name
