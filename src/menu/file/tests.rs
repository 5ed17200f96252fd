use proptest::prelude::*;

use super::*;

const SIZE: Size = Size { width: 64, height: 64 };

fn point(share: f64, steps: f64, rows: f64, quality: f64) -> MenuPoint {
    let fidelity = Some(Estimate { mean: quality, low: quality - 0.01, high: quality + 0.01 });
    MenuPoint {
        share,
        steps,
        rows,
        quality: Estimate { mean: quality, low: quality - 0.02, high: quality + 0.02 },
        fidelity,
        realism: None,
        clip_score: None,
        closeness: None,
    }
}

fn option(steps: usize, guided_until: f64, from: Vec<MenuPoint>) -> MeasuredOption {
    let option = serde_json::from_value(serde_json::json!({
        "id": format!("ddim-{steps}-until-{guided_until}"), "steps": steps, "guided_until": guided_until
    }));
    MeasuredOption { option: option.unwrap(), from }
}

fn starts() -> Vec<MenuStart> {
    vec![MenuStart { share: 0.0, noise_level: 1.0 }, MenuStart { share: 0.5, noise_level: 0.8 }]
}

fn measured_for() -> MenuFor {
    MenuFor {
        model: "m".into(),
        weights: "w".into(),
        size: SIZE,
        guidance_scale: 5.0,
        full_steps: 50,
        scorer: "fidelity, realism".into(),
        scorer_digest: "s".into(),
        prompts: 3,
    }
}

fn menu() -> MenuFile {
    let options = vec![
        option(4, 0.7, vec![point(0.0, 4.0, 6.0, 0.6), point(0.5, 2.0, 3.0, 0.8)]),
        option(10, 0.5, vec![point(0.0, 10.0, 15.0, 0.9), point(0.5, 5.0, 6.0, 0.96)]),
        option(20, 0.5, vec![point(0.0, 20.0, 32.0, 1.04), point(0.5, 10.0, 14.0, 1.02)]),
    ];
    MenuFile::new(measured_for(), starts(), options).unwrap()
}

#[test]
fn quality_and_cost_are_read_between_the_starts() {
    let menu = menu();
    let read = MenuFile::from_json(&menu.to_json().unwrap()).unwrap();
    assert_eq!(read, menu);
    assert!(read.is_measured() && read.starts().len() == 2);
    let middle = menu.get("ddim-10-until-0.5").unwrap();
    let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found}, not {wanted}");
    for (done, quality, rows, steps) in [
        (0.0, 0.9, 15.0, 10.0),
        (0.25, 0.93, 10.5, 7.5),
        (0.5, 0.96, 6.0, 5.0),
        (0.75, 0.98, 3.0, 2.5),
        (1.0, 1.0, 0.0, 0.0),
        (1.5, 1.0, 0.0, 0.0),
    ] {
        near(middle.quality(done).mean, quality);
        near(middle.rows(done), rows);
        near(middle.steps(done), steps);
    }
    let interval = middle.quality(0.75);
    near(interval.low, 0.97);
    near(interval.high, 0.99);
}

#[test]
fn options_are_chosen_by_quality() {
    let menu = menu();
    let cheapest = |quality| menu.cheapest(quality).option.steps;
    assert_eq!([0.0, 0.6, 0.61, 0.95, 2.0].map(cheapest), [4, 4, 10, 20, 20]);
    assert_eq!(menu.best().option.steps, 20);
    assert!(menu.get("ddim-7").is_none());
}

#[test]
fn a_noise_level_tells_the_share() {
    let menu = menu();
    let share = |level| (menu.share_at(level) * 1000.0).round() / 1000.0;
    assert_eq!([1.0, 0.9, 0.8, 0.4, 0.0].map(share), [0.0, 0.25, 0.5, 0.75, 1.0]);
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let good = menu().to_json().unwrap();
    for (from, to, names) in [
        ("\"version\": 1", "\"version\": 7", "version 7"),
        ("\"model\"", "\"modell\"", "modell"),
        ("\"size\": \"64x64\"", "\"size\": \"64\"", "size"),
        ("\"full_steps\": 50", "\"full_steps\": 0", "`for.full_steps`"),
        ("\"guidance_scale\": 5.0", "\"guidance_scale\": 500.0", "`for.guidance_scale`"),
        ("\"share\": 0.0", "\"share\": 0.1", "`starts` must be a list that begins"),
        ("\"share\": 0.5", "\"share\": 1.5", "`starts` must be of shares below 1"),
        ("\"noise_level\": 0.8", "\"noise_level\": 1.8", "`starts` must be of rising"),
        ("\"share\": 0.5", "\"share\": 0.6", "`options.from`"),
        ("\"id\": \"ddim-4-until-0.7\"", "\"id\": \"a b\"", "options: id"),
        ("\"id\": \"ddim-4-until-0.7\"", "\"id\": \"ddim-10-until-0.5\"", "`options.id`"),
        ("\"guided_until\": 0.7", "\"guided_until\": 7.0", "options: guided_until"),
        ("\"guided_until\": 0.7", "\"resolution\": 7.0", "resolution"),
        ("\"steps\": 4.0", "\"steps\": 0.0", "`steps`"),
        ("\"rows\": 6.0", "\"rows\": 3.0", "`rows` must be from 1 to 3"),
        ("\"rows\": 6.0", "\"rows\": 13.0", "`rows` must be from 1 to 3"),
        ("\"rows\": 15.0", "\"rows\": 33.0", "`rows`"),
        ("\"mean\": 0.6", "\"mean\": -0.6", "`quality`"),
        ("\"mean\": 0.6", "\"mean\": 0.97", "`options.quality` must be rising"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = MenuFile::from_json(&good.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(names), "{from}: {error}");
    }
    let rows = |rows| option(5, 0.1, vec![point(0.0, 5.0, rows, 0.1 * rows), point(0.5, 3.0, 3.0, 0.5)]);
    let unsorted =
        MenuFile::new(measured_for(), starts(), vec![rows(9.0), rows(8.0)]).unwrap_err().to_string();
    assert!(unsorted.contains("`options.id`"), "{unsorted}");
    let mut other = rows(8.0);
    other.option.id = "other".into();
    let unsorted = MenuFile::new(measured_for(), starts(), vec![rows(9.0), other]).unwrap_err().to_string();
    assert!(unsorted.contains("`options.rows` must be rising"), "{unsorted}");
    assert!(MenuFile::new(measured_for(), starts(), vec![]).unwrap_err().to_string().contains("`options`"));
    assert!(MenuFile::new(measured_for(), vec![], vec![]).unwrap_err().to_string().contains("`starts`"));
}

#[test]
fn without_a_measurement_steps_are_thought_dear() {
    let menu = MenuFile::unmeasured("m", "w", SIZE, 50, 5.0).unwrap();
    assert!(!menu.is_measured());
    assert_eq!([0.9, 0.95, 0.97, 0.99].map(|quality| menu.cheapest(quality).option.steps), [10, 16, 20, 35]);
    let best = menu.best();
    assert_eq!((best.option.id.as_str(), best.quality(0.0).mean, best.rows(0.0)), ("ddim-50", 1.0, 100.0));
    assert_eq!(MenuFile::unmeasured("m", "w", SIZE, 50, 1.0).unwrap().best().rows(0.0), 50.0);
    assert_eq!(MenuFile::unmeasured("m", "w", SIZE, 1, 5.0).unwrap().options().len(), 1);
    assert!(MenuFile::unmeasured("m", "w", SIZE, 0, 5.0).is_err());
    let json = menu.to_json().unwrap();
    assert_eq!(MenuFile::from_json(&json).unwrap(), menu);
}

proptest! {
    #[test]
    fn what_is_left_falls_with_the_share_done(a in 0.0..=1.0f64, b in 0.0..=1.0f64) {
        let (early, late) = (a.min(b), a.max(b));
        for option in menu().options() {
            prop_assert!(option.rows(early) >= option.rows(late) && option.steps(early) >= option.steps(late));
            let quality = option.quality(early);
            prop_assert!(quality.low <= quality.mean && quality.mean <= quality.high);
        }
    }
}
