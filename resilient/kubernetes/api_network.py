# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a pod's names and name servers.

Facts from ``pkg/apis/core/validation/validation.go``: ``validateDNSPolicy``, ``validatePodDNSConfig``,
``ValidateHostAliases`` and ``ValidatePodSpec``. Whether a full name fits the host, only the kubelet asks.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    inside,
    invalid,
    invalids,
    items,
    mapping,
    required,
    text,
    unless_one_of,
)
from resilient.kubernetes.building import PartPath

_POLICIES: Final = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_MOST_SERVERS: Final = 3
_MOST_SEARCHES: Final = 32
_MOST_SEARCH_CHARS: Final = 2048
_ADDRESS_WORDS: Final = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"


def network(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """Of a pod."""
    policy = text(spec.get("dnsPolicy"))
    yield from unless_one_of("dns-policy-unknown", (*path, "dnsPolicy"), policy, _POLICIES)
    yield from _dns(spec.get("dnsConfig"), (*path, "dnsConfig"), is_alone=policy == "None")
    for key in ("hostname", "subdomain"):
        name = text(spec.get(key))
        yield from invalids("host-name", (*path, key), name, api_names.label(name) if name else ())
    for index, alias in enumerate(items(spec.get("hostAliases"))):
        where = (*path, "hostAliases", index)
        yield from _address(text(inside(alias, "ip")), (*where, "ip"))
        for at, name in enumerate(items(inside(alias, "hostnames"))):
            yield from invalids("host-name", (*where, "hostnames", at), name, api_names.subdomain(text(name)))


def _dns(config: object, path: PartPath, *, is_alone: bool) -> Iterator[Problem]:
    """``is_alone``: where nothing but this says who is asked."""
    servers, searches = items(inside(config, "nameservers")), items(inside(config, "searches"))
    if is_alone and config is None:
        yield required("dns-servers", path, "must provide `dnsConfig` when `dnsPolicy` is None")
    elif is_alone and not servers:
        why = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        yield required("dns-servers", (*path, "nameservers"), why)
    if len(servers) > _MOST_SERVERS:
        why = f"must not have more than {_MOST_SERVERS} nameservers"
        yield invalid("dns-servers", (*path, "nameservers"), servers, why)
    for index, server in enumerate(servers):
        yield from _address(text(server), (*path, "nameservers", index))
    yield from _searches([text(search) for search in searches], (*path, "searches"))
    for index, option in enumerate(items(inside(config, "options"))):
        if not text(mapping(option).get("name")):
            yield required("dns-option", (*path, "options", index), "must not be empty")


def _searches(searches: list[str], path: PartPath) -> Iterator[Problem]:
    if len(searches) > _MOST_SEARCHES:
        yield invalid("dns-search", path, searches, f"must not have more than {_MOST_SEARCHES} search paths")
    if len(" ".join(searches)) > _MOST_SEARCH_CHARS:
        why = f"must not have more than {_MOST_SEARCH_CHARS} characters (including spaces) in the search list"
        yield invalid("dns-search", path, searches, why)
    for index, search in enumerate(searches):
        if search != ".":
            name = search.removesuffix(".")
            yield from invalids("dns-search", (*path, index), name, api_names.search_domain(name))


def _address(address: str, path: PartPath) -> Iterator[Problem]:
    try:
        is_address = "%" not in address and bool(ipaddress.ip_address(_without_zeros(address)))
    except ValueError:
        is_address = False
    if not is_address:
        yield invalid("ip-address", path, address, _ADDRESS_WORDS)


def _without_zeros(address: str) -> str:
    """The API server reads 010.1.1.1 as 10.1.1.1."""
    return re.sub(r"(?<![0-9a-fA-F:])0+(?=[0-9])", "", address) if ":" not in address else address
