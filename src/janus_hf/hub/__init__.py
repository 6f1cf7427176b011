"""The Hub: open a checkpoint or an adapter at one commit, explain failed downloads, upload models with their cards."""
