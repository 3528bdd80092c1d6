"""Other trainers on the workload of ``vs_trl.py``, each a side of ``vs_peers.py``."""
