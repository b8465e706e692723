"""Two hubs on loopback, which speak the real ones' HTTP interfaces to the real clients."""
