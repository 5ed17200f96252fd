//! Pixels to image files that say how they were painted.

use image::codecs::{jpeg::JpegEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use pentimento_pipelines::{NoiseSource, Picture};

use crate::queue::{Format, Hit, Job, Reused};

/// Why pixels did not become a file.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// PNG's reason.
    #[error(transparent)]
    Png(#[from] png::EncodingError),
    /// JPEG's or WebP's reason.
    #[error(transparent)]
    Image(#[from] image::ImageError),
}

/// The generation parameters, with the steps of the plan that the picture got, as AUTOMATIC1111's tools, and those after them, read them. A picture that was made
/// from another one's state says so: its seed alone does not paint it again.
pub fn parameters(job: &Job, steps: usize, reused: Option<&Reused>, skipped_steps: usize) -> String {
    let mut text = format!("{}\n", job.prompt);
    if !job.negative_prompt.is_empty() {
        text += &format!("Negative prompt: {}\n", job.negative_prompt);
    }
    let guidance = job.plan.steps().first().map_or(0.0, |step| step.guidance.scale);
    text += &format!(
        "Steps: {steps}, Sampler: DDIM, CFG scale: {guidance}, Seed: {}, Size: {}, Model: {}, ",
        job.seed, job.size, job.model,
    );
    if job.noise == NoiseSource::Torch {
        text += "RNG: CPU, "; // what these tools call PyTorch's CPU generator
    }
    if let Some(Reused { hit: Hit::State | Hit::Semantic, source, .. }) = reused {
        text += &format!("Reused steps: {skipped_steps} of {}, ", source.as_str());
    }
    text + "Version: pentimento " + env!("CARGO_PKG_VERSION")
}

/// A picture as the file its job asks for.
///
/// # Errors
/// The encoder's, such as for a side longer than the format allows.
pub fn encode(
    picture: &Picture,
    job: &Job,
    steps: usize,
    reused: Option<&Reused>,
    skipped_steps: usize,
) -> Result<Vec<u8>, EncodeError> {
    let text = parameters(job, steps, reused, skipped_steps);
    let mut file = Vec::new();
    match job.encoding.format {
        Format::Png => write_png(picture, text, &mut file)?,
        Format::Jpeg => {
            write(JpegEncoder::new_with_quality(&mut file, job.encoding.quality), picture, &text)?;
        }
        Format::Webp => write(WebPEncoder::new_lossless(&mut file), picture, &text)?,
    }
    Ok(file)
}

fn write_png(picture: &Picture, text: String, file: &mut Vec<u8>) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // tEXt is Latin-1; every reader knows it. iTXt holds the rest.
    if text.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk("parameters".to_owned(), text)?;
    } else {
        encoder.add_itxt_chunk("parameters".to_owned(), text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()
}

fn write(mut encoder: impl ImageEncoder, picture: &Picture, text: &str) -> image::ImageResult<()> {
    // Best effort: a prompt too long for EXIF's 64 KiB still gives a picture.
    if text.len() < 30_000 {
        let _ = encoder.set_exif_metadata(exif_user_comment(text));
    }
    encoder.write_image(&picture.rgb, picture.width, picture.height, ExtendedColorType::Rgb8)
}

/// EXIF with one entry, UserComment in UTF-16: where the same tools look in JPEG and WebP files.
fn exif_user_comment(text: &str) -> Vec<u8> {
    const EXIF_IFD: u16 = 0x8769;
    const USER_COMMENT: u16 = 0x9286;
    const LONG: u16 = 4;
    const UNDEFINED: u16 = 7;
    let comment: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let mut exif = b"MM\0\x2a\0\0\0\x08".to_vec();
    let mut directory = |tag: u16, kind: u16, count: u32, value: u32| {
        exif.extend(1u16.to_be_bytes());
        exif.extend(tag.to_be_bytes());
        exif.extend(kind.to_be_bytes());
        exif.extend(count.to_be_bytes());
        exif.extend(value.to_be_bytes());
        exif.extend(0u32.to_be_bytes()); // no directory follows
    };
    // Each directory takes 18 bytes: the second starts at 8 + 18, the comment lies after both.
    directory(EXIF_IFD, LONG, 1, 26);
    directory(USER_COMMENT, UNDEFINED, comment.len() as u32, 44);
    exif.extend(comment);
    exif
}

#[cfg(test)]
mod tests {
    use pentimento_pipelines::Size;

    use super::*;
    use crate::queue::{Encoding, Start};

    fn job(prompt: &str, format: Format) -> Job {
        let plan =
            r#"{"steps":[{"timestep":501,"guidance":{"scale":4}},{"timestep":1,"guidance":{"scale":4}}]}"#;
        Job {
            request_id: String::new(),
            index: 0,
            client: String::new(),
            model: "storybook".into(),
            prompt: prompt.into(),
            negative_prompt: "rain".into(),
            size: Size { width: 16, height: 8 },
            seed: 7,
            noise: NoiseSource::Pentimento,
            plan: serde_json::from_str(plan).unwrap(),
            terms: crate::plan::Terms {
                tier: crate::plan::Tier::Auto,
                floor: 2,
                best: 2,
                objective: std::time::Duration::from_secs(1),
            },
            spent: std::time::Duration::ZERO,
            start: Start::Noise,
            keep: None,
            previews: vec![],
            encoding: Encoding { format, quality: 50 },
        }
    }

    fn picture() -> Picture {
        Picture { width: 16, height: 8, rgb: (0..16 * 8 * 3).map(|i| (i / 3) as u8).collect() }
    }

    #[test]
    fn png_says_how_it_was_painted_in_any_script() {
        for prompt in ["a château", "雪の家"] {
            let file = encode(&picture(), &job(prompt, Format::Png), 2, None, 0).unwrap();
            let reader = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
            let info = reader.info();
            let text = match info.utf8_text.first() {
                Some(chunk) => chunk.get_text().unwrap(),
                None => info.uncompressed_latin1_text[0].text.clone(),
            };
            assert_eq!(info.utf8_text.is_empty(), prompt == "a château");
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(
                text,
                format!(
                    "{prompt}\nNegative prompt: rain\nSteps: 2, Sampler: DDIM, CFG scale: 4, Seed: 7, \
                     Size: 16x8, Model: storybook, Version: pentimento {version}"
                )
            );
        }
    }

    #[test]
    fn every_format_decodes_and_the_lossless_ones_to_the_same_pixels() {
        for format in [Format::Png, Format::Jpeg, Format::Webp] {
            let file = encode(&picture(), &job("a", format), 2, None, 0).unwrap();
            let back = image::load_from_memory(&file).unwrap().into_rgb8();
            assert_eq!(back.dimensions(), (16, 8));
            assert_eq!(back.into_raw() == picture().rgb, format != Format::Jpeg, "{format:?}");
        }
    }
}
