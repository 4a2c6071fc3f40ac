"""The library that gateways and replicators stand on: vocabulary, ports, adapters, site model."""
