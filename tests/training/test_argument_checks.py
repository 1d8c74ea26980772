"""Arguments that cannot work are refused at once, in one line that names them and says what to do."""

from __future__ import annotations

import pytest

from common.errors import ConfigurationError
from config import Config, DataConfig, ModelConfig
from training.argument_checks import FIXED_ARGUMENTS, FORMER_ARGUMENTS, check_user_arguments
from training.arguments import make_training_arguments


def refusal(tmp_path, arguments: dict, **model) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make_training_arguments(
            Config(
                data=DataConfig(eval_manifest="eval.csv"),
                model=ModelConfig(output_dir=str(tmp_path), trainer_arguments=arguments, **model),
            )
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"report_to": "tensorbord"}, "expected one of azure_ml"),
        ({"optim": "adamw_bnb_8bit"}, "pip install -U bitsandbytes"),
        ({"optim": "galore_adamw"}, "galore_torch"),
        ({"optim": "no such optimizer"}, "is not a valid OptimizerNames"),
        ({"adam_beta1": 2.0}, "Invalid beta parameter"),
        ({"use_liger_kernel": True}, "pip install liger-kernel"),
        ({"push_to_hub": True}, "push_to_hub cannot reach the Hugging Face Hub"),
        ({"fp16": True}, "fp16 needs a GPU"),
        ({"max_grad_norm": "abc"}, "max_grad_norm is 'abc': expected a number"),
        ({"max_grad_norm": True}, "expected a number"),
        ({"eval_on_start": 3}, "expected True or False"),
        ({"lr_scheduler_kwargs": '{"min_lr": '}, "expected JSON"),
        ({"max_gradnorm": 1}, "did you mean 'max_grad_norm'"),
        ({"bf16_full_eval": True}, "set model.bf16"),
        ({"prediction_loss_only": True}, "model.metric_for_best_model loss"),
        ({"eval_do_concat_batches": False}, "leave it out"),
        ({"generation_config": "/nope"}, "set model.language"),
        ({"fsdp": "full_shard"}, "each GPU holds the whole model"),
        ({"evaluation_strategy": "steps"}, "set model.eval_steps"),
        ({"logging_dir": "logs"}, "TENSORBOARD_LOGGING_DIR"),
        ({"save_safetensors": True}, "always safetensors"),
        ({"group_by_length": True}, "the order of the samples is the plan's"),
        ({"tokenizer": "x"}, "the tokenizer of model.model_name is used"),
    ],
)
def test_what_hugging_face_would_find_out_later_is_refused_at_once(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert expected in refusal(tmp_path, arguments)


def test_a_schedule_without_its_options_is_refused_and_accepted_with_them(tmp_path):
    assert "lr_scheduler_kwargs" in refusal(tmp_path, {}, lr_scheduler_type="cosine_with_min_lr")
    options = {"lr_scheduler_kwargs": '{"min_lr": 1e-6}'}
    model = ModelConfig(output_dir=str(tmp_path), lr_scheduler_type="cosine_with_min_lr", trainer_arguments=options)
    assert make_training_arguments(Config(model=model)).lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_the_arguments_of_the_readmes_example_work(tmp_path):
    example = {"max_grad_norm": 0.5, "report_to": "tensorboard"}
    arguments = make_training_arguments(Config(model=ModelConfig(output_dir=str(tmp_path), trainer_arguments=example)))
    assert (arguments.max_grad_norm, arguments.report_to) == (0.5, ["tensorboard"])


def test_every_fixed_and_former_argument_says_what_to_do_instead():
    for name, instead in (FORMER_ARGUMENTS | FIXED_ARGUMENTS).items():
        with pytest.raises(ConfigurationError) as caught:
            check_user_arguments({name: 1})
        assert f"{name!r}: leave it out ({instead})" in str(caught.value)
