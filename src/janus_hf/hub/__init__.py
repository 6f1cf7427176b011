"""The Hub: open a checkpoint or an adapter at one commit, say why it cannot be had, upload models with their cards."""
