"""What the benches and the studies share: data, timing, the other libraries, tables and charts."""
