"""Any training program, checked from outside: `verify --program`."""
