# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --from`` on manifests with anchors: no alias may carry a change where it does not belong."""

import kubernetes_validate
import pytest
import yaml

from resilient.errors import SettingsError
from resilient.kubernetes.adding import add_contract
from resilient.kubernetes.completing import Addition

SHARING = """\
apiVersion: batch/v1
kind: Job
metadata:
  name: llm
  labels: &labels {team: nlp}
spec:
  template:
    metadata:
      labels: LABELS
    spec:
      restartPolicy: Never
      initContainers:
      - name: warm
        image: &image "x:1"  # the same as below
        command: [warm]
        resources: &size {limits: {cpu: 8}}
      containers:
      - &training
        name: main
        image: *image
        command: &command [python, train.py]
        resources: *size
        env: &env
        - {name: A, value: a}
"""
ASKED = Addition(checkpoints="s3://b/r", container="main")


def sharing(labels: str = "{team: nlp}", more: str = "") -> str:
    return SHARING.replace("LABELS", labels) + more


def test_what_stands_in_several_places_may_stay_there() -> None:
    """Aliases of what does not change are kept as they are."""
    text = sharing()
    added, _ = add_contract(text, ASKED)
    assert [line for line in text.splitlines() if line not in added.splitlines()] == [
        "      labels: {team: nlp}",
        "        command: &command [python, train.py]",
    ]
    before, after = (yaml.safe_load(each)["spec"]["template"]["spec"] for each in (text, added))
    assert after["initContainers"] == before["initContainers"]
    assert after["containers"][0]["command"] == ["resilient", "run", "--", "python", "train.py"]
    kubernetes_validate.validate(yaml.safe_load(added), "1.33", strict=True)


@pytest.mark.parametrize(
    "text",
    [
        sharing(labels="*labels"),
        sharing(more="      - {name: side, image: y, command: *command}\n"),
        sharing(more="      - {name: side, image: y, env: *env}\n"),
        sharing(more="      - {<<: *training, name: side}\n"),
    ],
)
def test_what_would_change_in_several_places_is_refused(text: str) -> None:
    """An alias would bring the supervisor into a container that does not train."""
    with pytest.raises(SettingsError, match="stands in several places, by an anchor and its aliases; write it out"):
        add_contract(text, ASKED)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (sharing().replace("{name: A,", "{name: [],"), "one of its env has a name that is no text"),
        (sharing().replace("name: main", "name: 8"), "one of its containers has a name that is no text"),
        (sharing().replace("name: main", "stdin: true"), "a container of it has no name"),
    ],
)
def test_names_that_are_none_are_refused(text: str, why: str) -> None:
    """What others are found by must be text; kubectl would not take them either."""
    with pytest.raises(SettingsError, match=why):
        add_contract(text, Addition(checkpoints="s3://b/r"))
