"""What several processes need: sharding by FSDP2 and DeepSpeed in float32, and failing for the same reason."""
