"""What a run computes on: devices, memory, and several processes of one launch.

`settings.py` is the section of a profile, `device.py` the device it names, `parts.py` how a batch is computed in parts whose
losses add up to that of the batch, `processes.py` how those parts are shared by processes that `accelerate launch` started:

    unforgotten run muse-news --set compute.device=cuda --set compute.micro_batch=1
    accelerate launch --config_file experiments/launch/fsdp.yaml -m unforgotten.cli run muse-news
"""
