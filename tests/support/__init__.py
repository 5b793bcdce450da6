"""What the tests share: a proxy that breaks connections, programs run apart, processes watched, servers."""
