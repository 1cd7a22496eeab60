# SPDX-License-Identifier: Apache-2.0
"""Rules about what schedulers, kubelets and the kernel say of a whole job; known from logs only.

Only rows. Who is asked to leave dies of it: what workers raise afterwards is a
consequence, so these rows come before every exception.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import Family, Rule, logged, printed, row

SLURM: Final = "https://slurm.schedmd.com/preempt.html"
SLURM_STATES: Final = "https://slurm.schedmd.com/job_state_codes.html"
SUBMITIT: Final = "https://github.com/facebookincubator/submitit/blob/main/submitit/core/job_environment.py"
DISRUPTIONS: Final = "https://kubernetes.io/docs/concepts/workloads/pods/disruptions/"
PRESSURE: Final = "https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/"
OOM: Final = "https://docs.kernel.org/admin-guide/cgroup-v2.html"
SPOT: Final = "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"


def _platform(
    name: str,
    cause: Cause,
    action: Action,
    why: str,
    text: str,
    example: str,
    source: str,
    confidence: Confidence = Confidence.HIGH,
) -> Rule:
    shown = logged("step 10", example, "step 11")
    when = printed(Lane.PLATFORM, text)
    return row(
        name, cause, action, why + ": {seen}", when, shown, source, family=Family.PLATFORM, confidence=confidence
    )


_LEAVE: Final = (Cause.PREEMPTED, Action.CHECKPOINT_AND_EXIT)
_MEMORY: Final = (Cause.OUT_OF_MEMORY_HOST, Action.STOP)
_NODE: Final = (Cause.DEVICE_FAULT, Action.RESCHEDULE)

PLATFORM_RULES: Final = (
    _platform(
        "preempted",
        *_LEAVE,
        "the scheduler took the job's place away",
        r"DUE TO PREEMPTION|\bPreempted by pod\b|[Pp]reemption notice|Event(?:Type)?: Preempt\b"
        r"|this job is (?:preempted|timed.out)|[Pp]reempted in order to admit|PreemptionByScheduler"
        r"|\b(?:[Jj]ob|[Pp]od|[Ii]nstance|[Nn]ode|VM|[Cc]luster)\b.{0,60} (?:is|was|has been|got|being) preempted"
        r"|JOB PREEMPTED|\bPreempted (?:by|to)\b|compute\.instances\.preempted",
        "slurmstepd: error: *** JOB 4711 ON node-7 CANCELLED AT 2024-01-01T00:00:00 DUE TO PREEMPTION ***",
        SLURM,
    ),
    _platform(
        "spot-notice",
        *_LEAVE,
        "the cloud announced that it takes the machine back",
        # The second as AWS Batch puts it.
        r"[Ss]pot [Ii]nstance.{0,40}(?:[Ii]nterrupt|[Tt]erminat|[Rr]eclaim)|\bHost EC2 .{0,60}terminated",
        "WARNING Spot instance interruption notice received, 120 seconds left",
        SPOT,
    ),
    _platform(
        "time-limit",
        *_LEAVE,
        "the job used up its time",
        r"DUE TO TIME ?LIMIT|reached (?:its )?(?:wall ?time|time) limit|State=TIMEOUT\b|\bTERM_RUNLIMIT\b"
        r"|\bwalltime \d+ exceeded limit",
        "slurmstepd: error: *** STEP 4711.0 ON node-7 CANCELLED AT 2024-01-01T00:00:00 DUE TO TIME LIMIT ***",
        SLURM_STATES,
    ),
    _platform(
        "node-failed",
        *_NODE,
        "the scheduler lost the node",
        r"DUE TO NODE FAIL|srun: error: Node failure on |\bNodeLost\b|\bNodeNotReady\b|\bContainerStatusUnknown\b"
        r"|\bNODE_FAIL\b"
        r"|[Nn]ode .{0,80} (?:is|became) (?:NotReady|not ready|unreachable)",
        "srun: error: Node failure on node-7; *** JOB 4711 CANCELLED AT 2024-01-01T00:00:00 DUE TO NODE FAILURE ***",
        SLURM_STATES,
        Confidence.MEDIUM,
    ),
    _platform(
        "evicted",
        *_LEAVE,
        "the pod was evicted",
        r"\bEvicted\b|\b(?:was|is being|got) evicted\b|[Tt]he node was low on resource"
        r"|TaintManagerEviction|DeletionByTaintManager|EvictionByEvictionAPI|imminent node shutdown|DisruptionTarget",
        "Warning  Evicted  kubelet  The node was low on resource: ephemeral-storage.",
        PRESSURE,
        Confidence.MEDIUM,
    ),
    _platform(
        "oom-killer",
        *_MEMORY,
        "the OOM killer ended a process",
        r"\b[Oo]ut of memory: Kill(?:ed)? process|oom-kill:constraint=|\boom[-_]kill event|\bOOMKilled\b"
        r"|killed (?:due to|because of) memory pressure|oom_reaper: reaped|invoked oom-killer|\bOOM Killed\b"
        r"|task.{0,40}: Out Of Memory$"
        r"|killed due to the node running low on memory",
        "[ 1234.567890] Memory cgroup out of memory: Killed process 4242 (python3) total-vm:88888kB, anon-rss:77777kB",
        OOM,
    ),
    _platform(
        "memory-limit",
        *_MEMORY,
        "the job used more memory than it had asked for",
        r"[Ee]xceeded (?:job|step) memory limit|slurmstepd: .{0,80}memory limit|\bTERM_MEMLIMIT\b"
        r"|\bjob killed: v?mem .{0,40}exceeded limit",
        "slurmstepd: error: Step 4711.0 exceeded step memory limit (70000000 > 64000000), being killed",
        SLURM_STATES,
    ),
)
