"""Train on the workers of a Ray cluster. Start with: python examples/clusters/ray_train.py"""

from ray.train import ScalingConfig
from ray.train.v2.jax import JaxTrainer


def train(config: dict) -> None:
    """Run in every worker. JaxTrainer has joined them, so that JAX knows the devices of all."""
    import zoo

    zoo.fit(**config)


if __name__ == "__main__":
    JaxTrainer(
        train,
        train_loop_config={"model": "resnet50", "data": "/shared/photos", "workdir": "/shared/runs/zoo"},
        scaling_config=ScalingConfig(num_workers=4, use_gpu=True),
    ).fit()
