"""The official SDKs, pointed at the proxy in front of the simulator. `run.sh` runs them; see there."""
