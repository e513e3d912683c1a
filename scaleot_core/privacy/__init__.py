"""Differential privacy at the data owner: mechanisms, the accountant, the ledger, the audit."""
