//! A picture on its way, painted by the storybook model: what is counted and kept of it through changes of plans.

use std::path::Path;
use std::time::Duration;

use pentimento_cache::{
    Cache, CacheConfig, Compatibility, Content, EntryId, Filter, NewPicture, PaintedPlan, Scope,
    SpecificationHash,
};
use pentimento_pipelines::{
    Components, DenoisingState, Device, HelperThreads, Model, NoiseSource, Pipeline, PlanOption, Size,
};

use safetensors::SafeTensors;

use crate::picture::file::with_parameters;
use crate::picture::{KeepOrder, PaintTask, PictureSpec, StartState};
use crate::scheduler::messages::{Assignment, Beginning, Rank};
use crate::scheduler::{OptionId, TaskId};
use crate::worker::{BeginError, LoadedState, Painting, PipelinePainting, Pipelines, Stages, Stored};

fn model() -> Pipeline {
    Pipeline::load(&Model::find("storybook").unwrap(), &Components::default(), &Device::Cpu).unwrap()
}

/// Options of 8 and 20 steps, and one of 20 of which the first 12 are guided.
fn engine(stored: Option<Stored>) -> Pipelines {
    let model = model();
    let schedule = model.schedule().clone();
    let partly = PlanOption::ddim(&schedule, 20, 12).unwrap();
    Pipelines::new(vec![(model, vec![PlanOption::guided(8), PlanOption::guided(20), partly])], stored)
}

fn task() -> PaintTask {
    let spec = PictureSpec {
        model: "storybook".into(),
        weights: String::new(),
        prompt: "a red house in the snow".into(),
        negative_prompt: None,
        size: Size { width: 64, height: 64 },
        seed: 1,
        noise: NoiseSource::Pentimento,
        guidance_scale: 5.0,
        steps: None,
    };
    PaintTask { request: "r".into(), spec, start: None, keep: None }
}

fn assignment(task: PaintTask, option: &str) -> Assignment<PaintTask> {
    let beginning = if task.start.is_some() { Beginning::State } else { Beginning::Noise };
    Assignment {
        task: TaskId { request: "r".into(), index: 0 },
        attempt: 1,
        spec: task,
        model: "storybook".into(),
        option: option.into(),
        beginning,
        rank: Rank { yields: false, tag: 0.0 },
        paused: false,
        previews: 0,
        deadline_seconds: 9.0,
    }
}

fn begin(engine: &Pipelines, task: PaintTask, option: &str, state: Option<LoadedState>) -> PipelinePainting {
    engine.begin(&assignment(task, option), state, Duration::ZERO).unwrap()
}

fn steps(engine: &Pipelines, painting: &mut PipelinePainting, count: usize) {
    (0..count).for_each(|_| engine.step(&mut [painting]).unwrap());
}

/// Takes what is left; how many steps that were.
fn rest(engine: &Pipelines, painting: &mut PipelinePainting) -> usize {
    let mut taken = 0;
    while painting.rows() > 0 {
        steps(engine, painting, 1);
        taken += 1;
    }
    taken
}

/// A state of another picture, halfway through 20 steps.
fn state(model: &Pipeline) -> (StartState, DenoisingState) {
    let size = Size { width: 64, height: 64 };
    let conditioning = model.encode("a blue house in the snow", None, size).unwrap();
    let plan = model.plan(20, 5.0).unwrap();
    let mut source = model.start(conditioning.into(), 7, NoiseSource::Pentimento, size, plan).unwrap();
    (0..10).for_each(|_| model.step(&mut [&mut source]).unwrap());
    let state = source.snapshot().unwrap();
    let start = StartState {
        entry: EntryId::new(1),
        timestep: state.timestep,
        similarity: 0.95,
        source_prompt: Some("a blue house in the snow".into()),
        varied: true,
        loss: 0.02,
        required: false,
    };
    (start, state)
}

#[test]
fn a_change_of_plans_goes_on_from_where_it_is() {
    let engine = engine(None);
    let mut painting = begin(&engine, task(), "ddim-20", None);
    assert_eq!((painting.noise_level(), painting.rows()), (1.0, 2));
    steps(&engine, &mut painting, 5);
    let level = painting.noise_level();
    painting.replan(&OptionId::from("ddim-8")).unwrap();
    assert_eq!(painting.noise_level(), level, "another plan is no progress");
    let taken = rest(&engine, &mut painting);
    assert!((6..=7).contains(&taken), "a quarter of 8 steps is behind it: {taken} are left");
    assert_eq!(painting.noise_level(), 0.0);
    assert!(painting.replan(&OptionId::from("ddim-99")).is_err(), "the menu does not have it");
    let picture = engine.finish(&mut painting).unwrap();
    assert_eq!((picture.steps, picture.skipped_steps), (5 + taken, 0));
    assert!(picture.file.starts_with(b"\x89PNG") && picture.started_from.is_none());
}

#[test]
fn the_result_does_not_depend_on_the_company_or_on_a_change_to_the_same_plan() {
    let engine = engine(None);
    let mut alone = begin(&engine, task(), "ddim-8", None);
    rest(&engine, &mut alone);
    let mut other = task();
    other.spec.seed = 2;
    let (mut with, mut company) =
        (begin(&engine, task(), "ddim-8", None), begin(&engine, other, "ddim-20", None));
    (0..8).for_each(|_| engine.step(&mut [&mut with, &mut company]).unwrap());
    let (alone, with) = (engine.finish(&mut alone).unwrap(), engine.finish(&mut with).unwrap());
    assert_eq!(alone.file, with.file);
}

#[test]
fn a_state_spares_steps_and_its_steering_outlives_a_change_of_plans() {
    let (engine, model) = (engine(None), model());
    let (start, state) = state(&model);
    let task = PaintTask { start: Some(start), ..task() };
    let loaded = |state: &DenoisingState| Some(LoadedState::new(state.clone(), Duration::ZERO));
    let steered = |painting: &PipelinePainting| {
        let steps = painting.trajectory().plan().steps();
        steps.iter().filter(|step| step.guidance.steering != Default::default()).count()
    };
    let mut painting = begin(&engine, task.clone(), "ddim-20", loaded(&state));
    assert_eq!((painting.skipped(), steered(&painting), painting.trajectory().plan().eta()), (10, 3, 1.0));
    steps(&engine, &mut painting, 1);
    painting.replan(&OptionId::from("ddim-8")).unwrap();
    assert_eq!((steered(&painting), painting.trajectory().plan().eta()), (1, 1.0), "two of three are left");
    let taken = rest(&engine, &mut painting);
    let picture = engine.finish(&mut painting).unwrap();
    assert_eq!((picture.steps, picture.skipped_steps), (11 + taken, 10));
    assert!(picture.started_from.is_some());

    // A state that does not fit, or is gone: noise, unless the picture insists.
    let odd = DenoisingState { shape: [4, 4, 4], latent: vec![0.0; 64], ..state };
    for state in [loaded(&odd), None] {
        assert_eq!(begin(&engine, task.clone(), "ddim-8", state).skipped(), 0);
    }
    let mut insists = task;
    insists.start.as_mut().unwrap().required = true;
    let begun = engine.begin(&assignment(insists, "ddim-8"), None, Duration::ZERO);
    assert_eq!(begun.err(), Some(BeginError::StateGone));
}

#[test]
fn previews_are_spread_over_the_steps_and_none_is_made_up_for() {
    let engine = engine(None);
    let mut painting = begin(&engine, task(), "ddim-8", None);
    painting.set_previews(3);
    let mut made = Vec::new();
    for step in 1..=8 {
        steps(&engine, &mut painting, 1);
        if let Some((number, preview)) = painting.due_preview() {
            assert!(engine.preview(preview).unwrap().starts_with(&[0xff, 0xd8]));
            made.push((step, number));
        }
    }
    assert_eq!(made, [(2, 1), (4, 2), (6, 3)]);
    let mut late = begin(&engine, task(), "ddim-8", None);
    steps(&engine, &mut late, 4);
    late.set_previews(3);
    assert!(late.due_preview().is_none(), "the places of the first two are behind it");
    steps(&engine, &mut late, 2);
    assert_eq!(late.due_preview().map(|(number, _)| number), Some(3));
}

#[test]
fn a_pinned_number_of_steps_needs_no_menu() {
    let engine = engine(None);
    let mut pinned = task();
    pinned.spec.steps = Some(3);
    let mut painting = begin(&engine, pinned, "ddim-3", None);
    assert_eq!(rest(&engine, &mut painting), 3);
    let unknown = engine.begin(&assignment(task(), "ddim-3"), None, Duration::ZERO);
    assert!(matches!(unknown, Err(BeginError::Failed(_))));
}

fn keep_order() -> Box<KeepOrder> {
    let picture = NewPicture {
        scope: Scope { tenant: "t".into(), namespace: "n".into() },
        compatibility: Compatibility {
            latent_space: "l".into(),
            noise_schedule: "s".into(),
            width: 64,
            height: 64,
            embedder: "e".into(),
            negative_prompt: String::new(),
        },
        model: "storybook".into(),
        guidance_scale: 5.0,
        embedding: vec![1.0, 0.0],
        prompt: None,
        prompt_hash: "h".into(),
        content: Content::of("a red house in the snow", &[0; 16]),
        specification: SpecificationHash::new([1; 32]),
        seed: 1,
        plan: PaintedPlan::guided(0),
        expected_quality: None,
        resumed: None,
        refresh: true,
        file: None,
        states: vec![],
    };
    Box::new(KeepOrder { picture, shares: vec![0.25, 0.5, 0.75] })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_keeps_file_plan_quality_and_states_whatever_the_plan_was() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
    let engine = engine(Some(Stored::new(cache.clone(), Duration::from_secs(1))));
    let keep = PaintTask { keep: Some(keep_order()), ..task() };
    let mut partly = begin(&engine, keep.clone(), "ddim-20-g12", None);
    rest(&engine, &mut partly);
    let picture = engine.finish(&mut partly).unwrap();
    engine.keep(partly, picture.clone(), Some(0.875));
    cache.flush().await.unwrap();
    let entry = cache.entries(&Filter::default(), None, 9).await.unwrap().remove(0);
    let plan = PaintedPlan { option: Some("ddim-20-g12".into()), steps: 20, guided_steps: 12 };
    assert_eq!((&entry.plan, entry.expected_quality, entry.resumed.clone()), (&plan, Some(0.875), None));
    assert_eq!(entry.states.iter().map(|kept| kept.share).collect::<Vec<_>>(), [0.25, 0.5, 0.75]);
    // The order names no prompt to be stored: the file is without its parameters.
    let bare = with_parameters(&picture.file, None).unwrap();
    assert_eq!(cache.picture(&entry.picture_key().unwrap()).await.unwrap(), bare);

    // Its state can be gone on from, and of what came of that no states are kept.
    let (mut start, _) = state(&model());
    (start.entry, start.timestep) = (entry.id.clone(), entry.states[1].timestep);
    let resumed = PaintTask { start: Some(start), ..keep };
    let loaded = engine.load(&resumed, &Beginning::State).await.unwrap();
    let mut painting = begin(&engine, resumed, "ddim-8", Some(loaded));
    steps(&engine, &mut painting, 1);
    painting.replan(&OptionId::from("ddim-20")).unwrap();
    rest(&engine, &mut painting);
    let picture = engine.finish(&mut painting).unwrap();
    engine.keep(painting, picture, None);
    cache.flush().await.unwrap();
    let entry = cache.entries(&Filter::default(), None, 9).await.unwrap().remove(0);
    assert_eq!((entry.plan.option.as_deref(), entry.states.len()), (Some("ddim-20"), 0));
    assert_eq!(entry.resumed.unwrap().loss, 0.02);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let (file, to) = (file.path(), to.join(file.file_name()));
        if file.is_dir() {
            copy(&file, &to);
        } else {
            std::fs::copy(&file, &to).unwrap();
        }
    }
}

/// The storybook model with a tensor that holds no numbers.
fn poisoned(part: &str, tensor: &str, folder: &Path) -> Pipeline {
    let folder = folder.join("poisoned");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("weights-manifest/storybook/model"), &folder);
    let file = folder.join(part).join("diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (from, to) = metadata.info(tensor).unwrap().data_offsets;
    bytes[8 + header + from..8 + header + to].fill(0xff); // NaN in every float format
    std::fs::write(&file, bytes).unwrap();
    let model = Model::find(folder.to_str().unwrap()).unwrap();
    Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap()
}

#[test]
fn weights_that_are_not_numbers_fail_first_steps_and_pictures() {
    for (part, tensor, what) in [
        ("unet", "conv_in.weight", "latent"),
        ("unet", "conv_out.bias", "latent"),
        ("vae", "decoder.conv_in.weight", "picture"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = poisoned(part, tensor, folder.path());
        let engine = Pipelines::new(vec![(model, vec![PlanOption::guided(2)])], None);
        let wanted = format!("the {what} holds values that are not finite");
        let warm = engine.warm_up(2);
        assert!(warm.as_ref().is_err_and(|why| why.contains(&wanted)), "{part} {tensor}: {warm:?}");
        let assignment = Assignment { model: "poisoned".into(), ..assignment(task(), "ddim-2") };
        let mut painting = engine.begin(&assignment, None, Duration::ZERO).unwrap();
        rest(&engine, &mut painting);
        assert_eq!(engine.finish(&mut painting).err(), Some(wanted), "{part} {tensor}");
    }
}

#[test]
fn helper_threads_of_its_own_paint_the_same_picture() {
    let engine = engine(None);
    let paint = || {
        let mut painting = begin(&engine, task(), "ddim-8", None);
        rest(&engine, &mut painting);
        engine.finish(&mut painting).unwrap().file
    };
    let plain = paint();
    let helpers = [HelperThreads::new(2).unwrap(), HelperThreads::new(3).unwrap()];
    std::thread::scope(|scope| {
        let painted: Vec<_> = helpers.iter().map(|helpers| scope.spawn(|| helpers.lend(paint))).collect();
        for painted in painted {
            assert_eq!(painted.join().unwrap(), plain);
        }
    });
}
