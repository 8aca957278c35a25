"""Reads Traefik's shipped files as Traefik would chain them: no router without the gate, and none that
leaves a gate header to the client. Traefik itself is in none of the registries that the tests use."""

import sys

import yaml

for path, port in zip(sys.argv[1:], ("9847", "9848"), strict=True):
    http = yaml.safe_load(open(path))["http"]
    assert set(http) == {"routers", "middlewares", "services"}, set(http)
    gate = http["middlewares"]["cmek-gate"]["forwardAuth"]
    assert gate["address"] == f"http://127.0.0.1:{port}/v1/authz", gate
    assert set(gate["authRequestHeaders"]) == {"x-workspace-id", "x-feature", "x-access"}, gate
    assert len(http["routers"]) >= 3
    for name, router in http["routers"].items():
        assert router["service"] in http["services"], name
        *before, last = router["middlewares"]
        assert last == "cmek-gate", name
        written = {}
        for middleware in before:
            written |= http["middlewares"][middleware]["headers"]["customRequestHeaders"]
        assert set(written) == {"x-workspace-id", "x-feature", "x-access"}, (name, written)
        assert written["x-workspace-id"].startswith("wrkspc_"), name
        assert "Header(`x-api-key`" in router["rule"], name
print("ok")
