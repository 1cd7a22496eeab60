# SPDX-License-Identifier: Apache-2.0
"""What a pod is told of itself without any permission, and which of its fields that stands in."""

from __future__ import annotations

from typing import Final

JOB_UID: Final = "metadata.labels['batch.kubernetes.io/controller-uid']"
JOBSET_UID: Final = "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
_ANNOTATION: Final = "metadata.annotations['batch.kubernetes.io/{}']".format
COUNTERS: Final = {
    "RESILIENT_INDEX": _ANNOTATION("job-completion-index"),
    "RESILIENT_FAILURE_COUNT": _ANNOTATION("job-index-failure-count"),
    "RESILIENT_IGNORED_COUNT": _ANNOTATION("job-index-ignored-failure-count"),
}
POD_UID: Final = {"RESILIENT_POD_UID": "metadata.uid"}
"""Which pod it is that the API server is asked about, and whose memory a snapshot outlives its container in: a pod
that replaces another may have the same name."""
PLACE: Final = {
    "RESILIENT_NODE": "spec.nodeName",
    "RESILIENT_POD": "metadata.name",
    "RESILIENT_NAMESPACE": "metadata.namespace",
}
POD_API_SETTING: Final = "RESILIENT_POD_API"
