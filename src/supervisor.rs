//! Keeps the agent's long-running tasks alive and says how they fare. To be written.
