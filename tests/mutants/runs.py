"""Faults of commands and runs."""

from __future__ import annotations

from .mutant import Mutant

ON_CONFIG = "tests/cli/test_config_files.py"
ON_SWEEPS = "tests/runners/test_sweeps.py"
ON_RUNS = "tests/runners/test_runs.py"
ON_SPACE = "tests/threat_specification/safe_moves/test_space.py"

MUTANTS = [
    Mutant(
        "an adversary without the threat keeps the threshold's default",
        "runners/train/objectives.py",
        "math.inf if training.without_threat else training.N_adv_train_threshold",
        "training.N_adv_train_threshold",
        "tests/runners/test_safe_moves.py -k without_the_threat",
    ),
    Mutant(
        "an adversary of training takes the tangent form with the usual weight",
        "runners/train/runner.py",
        '"tangents": training.N_train_tangents, "tangent_weight": training.N_train_tangent_weight',
        '"tangents": training.N_train_tangents',
        "tests/runners/test_forms.py -k adversary_of_training",
    ),
    Mutant(
        "an evaluation takes the tangent form with the usual weight",
        "runners/test/threats.py",
        'form |= {"tangents": testing.tangents, "tangent_weight": testing.tangent_weight}',
        'form |= {"tangents": testing.tangents}',
        "tests/runners/test_forms.py -k flags_of_a_form",
    ),
    Mutant(
        "the last threat alone says which images are left out",
        "runners/test/threats.py",
        "            found[part] |= threat.equals_other_anchor",
        "            found[part] = threat.equals_other_anchor",
        "tests/runners/test_forms.py -k left_out",
    ),
    Mutant(
        "the run attacks half the radius",
        "runners/test/under_attack.py",
        "Cell(testing.N_threshold, testing.N_radius),",
        "Cell(testing.N_threshold, testing.N_radius / 2),",
        ON_RUNS + " -k independent_count",
    ),
    Mutant(
        "the run takes a fifth of the steps",
        "runners/test/under_attack.py",
        "        testing.N_attack_iter,\n",
        "        max(1, testing.N_attack_iter // 5),\n",
        ON_RUNS + " -k independent_count",
    ),
    Mutant(
        "the run's ball is smaller than it says",
        "runners/test/under_attack.py",
        "return autoattack(testing.adv_test_attack_norm, power,",
        "return autoattack(testing.adv_test_attack_norm, power / 2,",
        ON_RUNS + " -k isotropic",
    ),
    Mutant(
        "thresholds come from all changes, unsafe ones too",
        "runners/inputs.py",
        'arrays[name][:, arrays["group"] == "safe"]',
        "arrays[name]",
        "tests/runners/test_coverage.py",
    ),
    Mutant(
        "safe moves: nobody asks what noise alone broke",
        "runners/test/runner.py",
        "                ENTRIES[name].settle(inputs, arrays)\n",
        "                pass\n",
        "tests/runners/test_safe_moves.py",
    ),
    Mutant(
        "safe moves: what noise alone broke is robust",
        "runners/test/moves.py",
        'arrays[of("correct")] = arrays[of("correct")] & ~new',
        'arrays[of("correct")] = arrays[of("correct")] | new',
        ON_SPACE,
    ),
    Mutant(
        "a protocol compares no digests",
        "runners/test/inputs.py",
        "            self._check_protocol()\n",
        "            pass\n",
        "tests/runners/test_protocol.py -k other_anchors",
    ),
    Mutant(
        "certificates: one that an attack broke is no failure",
        "runners/test/certified.py",
        "if wrong.any():",
        "if wrong.all():",
        "tests/runners/test_certificates.py -k first_image",
    ),
    Mutant(
        "a file of flags wins over the command line",
        "cli/main.py",
        "[*read.words, *arguments]",
        "[*arguments, *read.words]",
        f"{ON_CONFIG} -k test_flags_win_over_tables_and_tables_over_the_rest",
    ),
    Mutant(
        "test takes the device of train from a file of flags",
        "cli/config_files.py",
        "if _flags_set(runner, entry) <= describing(table)]",
        "]",
        f"{ON_CONFIG} -k test_a_table_speaks_for_its_run_not_for_how_others_are_run",
    ),
    Mutant(
        "a run's own file leaves out what is as by default",
        "runners/commands.py",
        "    if usual:\n",
        "    if not usual:\n",
        f"{ON_CONFIG} -k test_a_run_is_repeated_when_defaults_have_changed",
    ),
    Mutant(
        "a sweep does not wait for what its runs build on",
        "runners/multi/sweep.py",
        "max((1 + depth(below)",
        "max((depth(below)",
        f"{ON_SWEEPS} -k test_called_by_hand_the_script_submits_stage_after_stage",
    ),
    Mutant(
        "a task that was cancelled goes back into the queue",
        "runners/multi/sweep.py",
        '[ "$asked" != TERM ]',
        '[ "$asked" != KILL ]',
        f"{ON_SWEEPS} -k test_what_goes_back_into_the_queue",
    ),
    Mutant(
        "a tracker draws from the random numbers of the run",
        "runners/trackers.py",
        "with self._random_states_kept(), contextlib",
        "with contextlib",
        "tests/runners/test_trackers.py -k random",
    ),
    Mutant(
        "an old flag is dropped",
        "cli/published_flags.py",
        'words.append(f"{old.instead}{equals}{value}" if old.instead else word)',
        "words += [] if old.instead else [word]",
        "tests/test_public_surface.py -k old_flag",
    ),
    Mutant(
        "models of one name are counted as one",
        "runners/report/runner.py",
        "            tell_apart(found)\n",
        "            pass\n",
        "tests/runners/test_labels.py -k by_the_commands",
    ),
    Mutant(
        "flags outside the hash tell models apart",
        "runners/report/labels.py",
        'for field in fields if field.metadata["hashed"])}',
        "for field in fields)}",
        "tests/runners/test_labels.py",
    ),
    Mutant(
        "a training adversary takes labels that are no class",
        "training/any_loop.py",
        "(LogitsOf(model, labels), batch",
        "(model, batch",
        "tests/testing/test_arguments.py -k knows_the_classes",
    ),
    Mutant(
        "gradients of batch statistics stay with their process",
        "training/synchronised.py",
        "total = gradient.contiguous().clone()\n        torch.distributed.all_reduce(total)",
        "total = gradient.contiguous().clone()",
        "tests/training/test_synchronised.py",
    ),
    Mutant(
        "models are ranked whatever the flags of their evaluation",
        "runners/report/comparable.py",
        '"how": {flag: testing.get(flag) for flag in HOW[name]},',
        "",
        "tests/runners/test_answer.py",
    ),
    Mutant(
        "mCE counts the validation set of its paper",
        "runners/test/corruptions.py",
        "    counted = papers or list(errors)",
        "    counted = list(errors)",
        "tests/runners/test_corruption_runs.py -k mce",
    ),
    Mutant(
        "a run of changed corruptions is found again",
        "runners/test/desc.py",
        "return super().hashed() | versions | versions_of(made)",
        "return super().hashed() | versions",
        "tests/runners/test_then_project.py -k corruptions_that_changed",
    ),
    Mutant(
        "a sweep does not look at its runs",
        "runners/completion.py",
        'for child in getattr(desc, "children", ())):\n        return None',
        'for child in getattr(desc, "children", ())):\n        pass',
        "tests/runners/test_runs.py -k whose_run_was_removed",
    ),
    Mutant(
        "a claim of other labels than it says is no lie",
        "runners/claims.py",
        'raise Refuted(str(error)) if digest == told["sha256"] else error',
        "raise error",
        "tests/runners/test_site.py -k other_labels",
    ),
]
