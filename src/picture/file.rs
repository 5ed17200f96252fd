//! Image files that say how they were painted.
//!
//! A worker writes the lossless file ([`write_png`]); files of other formats are made from it ([`transcode`]).

use std::io::Cursor;

use image::codecs::{jpeg::JpegEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use pentimento_pipelines::{NoiseSource, Picture};
use serde::{Deserialize, Serialize};

use super::{PictureSpec, StartState};

/// The metadata's key, as AUTOMATIC1111's tools and those after them read it.
const PARAMETERS: &str = "parameters";
/// The most bytes of a decoded picture, and so of memory that a file can take: 8192x8192 in RGB.
const MAX_DECODED_BYTES: usize = 3 * 8192 * 8192;
/// EXIF has room for 64 KiB; UTF-16 takes twice the letters.
const MAX_EXIF_TEXT: usize = 30_000;

/// An image file's format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// PNG.
    #[default]
    Png,
    /// JPEG.
    Jpeg,
    /// WebP, lossless.
    Webp,
}

/// The file that a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Encoding {
    /// Its format.
    pub format: Format,
    /// JPEG's quality, 1 to 100.
    pub quality: u8,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// PNG's reason.
    #[error(transparent)]
    Png(#[from] png::EncodingError),
    /// The reason why a stored PNG cannot be read.
    #[error(transparent)]
    Read(#[from] png::DecodingError),
    /// JPEG's or WebP's reason.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// The stored file is no 8-bit RGB picture.
    #[error("the stored file is not a picture of this service")]
    Foreign,
}

/// The generation parameters in AUTOMATIC1111's text form. `steps` are those of the plans that the picture had. A picture
/// that started from another one's state says so, since its seed alone does not paint it again.
pub fn parameters(
    spec: &PictureSpec,
    steps: usize,
    started_from: Option<&StartState>,
    skipped_steps: usize,
) -> String {
    let PictureSpec {
        model,
        weights: _,
        prompt,
        negative_prompt,
        size,
        seed,
        noise,
        guidance_scale,
        steps: _,
    } = spec;
    let mut text = format!("{prompt}\n");
    if let Some(negative) = negative_prompt.as_deref().filter(|negative| !negative.is_empty()) {
        text += &format!("Negative prompt: {negative}\n");
    }
    text += &format!(
        "Steps: {steps}, Sampler: DDIM, CFG scale: {guidance_scale}, Seed: {seed}, Size: {size}, Model: {model}, "
    );
    if *noise == NoiseSource::Torch {
        text += "RNG: CPU, "; // what these tools call PyTorch's CPU generator
    }
    if let Some(StartState { entry, .. }) = started_from {
        text += &format!("Reused steps: {skipped_steps} of {}, ", entry.as_str());
    }
    text + "Version: pentimento " + env!("CARGO_PKG_VERSION")
}

/// The lossless file of a picture, with its generation parameters.
///
/// # Errors
/// PNG's.
pub fn write_png(picture: &Picture, parameters: &str) -> Result<Vec<u8>, FileError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // tEXt is Latin-1; every reader knows it. iTXt holds the rest.
    if parameters.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(PARAMETERS.to_owned(), parameters.to_owned())?;
    } else {
        encoder.add_itxt_chunk(PARAMETERS.to_owned(), parameters.to_owned())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    Ok(file)
}

/// A preview: a JPEG without metadata.
///
/// # Errors
/// JPEG's.
pub fn write_preview(picture: &Picture) -> Result<Vec<u8>, FileError> {
    let mut file = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut file, 85);
    encoder.write_image(&picture.rgb, picture.width, picture.height, ExtendedColorType::Rgb8)?;
    Ok(file)
}

/// A lossless file in the encoding that a client wants, its parameters included. Takes time in proportion to the
/// picture: not for an async thread.
///
/// # Errors
/// [`FileError`] where the file cannot be read, or the encoder cannot write it.
pub fn transcode(file: &[u8], encoding: Encoding) -> Result<Vec<u8>, FileError> {
    if encoding.format == Format::Png {
        return Ok(file.to_vec());
    }
    let (picture, text) = read_png(file)?;
    let mut transcoded = Vec::new();
    match encoding.format {
        Format::Png => {}
        Format::Jpeg => {
            write(JpegEncoder::new_with_quality(&mut transcoded, encoding.quality), &picture, &text)?;
        }
        Format::Webp => write(WebPEncoder::new_lossless(&mut transcoded), &picture, &text)?,
    }
    Ok(transcoded)
}

/// A lossless file with other generation parameters, or without any. Pixels are not touched, and nothing is compressed anew.
///
/// # Errors
/// [`FileError`] where it is none of this service's files, or PNG's.
pub fn with_parameters(file: &[u8], parameters: Option<&str>) -> Result<Vec<u8>, FileError> {
    // Signature and header, which comes first and has a fixed length.
    const HEAD: usize = 8 + 12 + 13;
    let is_text = |kind: &[u8]| matches!(kind, b"tEXt" | b"iTXt" | b"zTXt");
    let mut written = file.get(..HEAD).ok_or(FileError::Foreign)?.to_vec();
    if let Some(parameters) = parameters {
        let one = Picture { width: 1, height: 1, rgb: vec![0; 3] };
        let text = write_png(&one, parameters)?;
        chunks(&text[HEAD..]).try_for_each(|chunk| {
            let (kind, bytes) = chunk?;
            if is_text(kind) {
                written.extend_from_slice(bytes);
            }
            Ok::<_, FileError>(())
        })?;
    }
    for chunk in chunks(&file[HEAD..]) {
        let (kind, bytes) = chunk?;
        if !is_text(kind) {
            written.extend_from_slice(bytes);
        }
    }
    Ok(written)
}

/// The kind and all bytes of each chunk.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), FileError>> {
    std::iter::from_fn(move || {
        let length = rest.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize);
        let chunk = match length {
            None if rest.is_empty() => return None,
            None => None,
            Some(length) => rest.split_at_checked(length.saturating_add(12)),
        };
        let Some((chunk, after)) = chunk else {
            rest = &[];
            return Some(Err(FileError::Foreign));
        };
        rest = after;
        Some(Ok((&chunk[4..8], chunk)))
    })
}

/// A lossless file's picture and its parameters.
///
/// # Errors
/// [`FileError`] where it is none of this service's files.
pub fn read_png(file: &[u8]) -> Result<(Picture, String), FileError> {
    let limits = png::Limits { bytes: MAX_DECODED_BYTES };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(file), limits).read_info()?;
    let info = reader.info();
    let (width, height) = (info.width, info.height);
    if (info.color_type, info.bit_depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return Err(FileError::Foreign);
    }
    let latin = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == PARAMETERS);
    let wide = info.utf8_text.iter().find(|chunk| chunk.keyword == PARAMETERS);
    let text = match (wide, latin) {
        (Some(chunk), _) => chunk.get_text()?,
        (None, Some(chunk)) => chunk.text.clone(),
        (None, None) => String::new(),
    };
    let bytes = reader.output_buffer_size().filter(|bytes| *bytes <= MAX_DECODED_BYTES);
    let mut rgb = vec![0; bytes.ok_or(FileError::Foreign)?];
    reader.next_frame(&mut rgb)?;
    Ok((Picture { width, height, rgb }, text))
}

fn write(mut encoder: impl ImageEncoder, picture: &Picture, text: &str) -> image::ImageResult<()> {
    // A prompt too long for EXIF still gives a picture.
    if text.len() < MAX_EXIF_TEXT {
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

    fn spec(prompt: &str) -> PictureSpec {
        PictureSpec {
            model: "storybook".into(),
            weights: String::new(),
            prompt: prompt.into(),
            negative_prompt: Some("rain".into()),
            size: Size { width: 16, height: 8 },
            seed: 7,
            noise: NoiseSource::Pentimento,
            guidance_scale: 4.0,
            steps: None,
        }
    }

    fn picture() -> Picture {
        Picture { width: 16, height: 8, rgb: (0..16 * 8 * 3).map(|i| (i / 3) as u8).collect() }
    }

    #[test]
    fn png_says_how_it_was_painted_in_any_script() {
        for prompt in ["a château", "雪の家"] {
            let file = write_png(&picture(), &parameters(&spec(prompt), 2, None, 0)).unwrap();
            let (back, text) = read_png(&file).unwrap();
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(back.rgb, picture().rgb);
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
    fn parameters_are_taken_out_and_put_in_without_touching_the_picture() {
        let parameters = |prompt: &str| parameters(&spec(prompt), 2, None, 0);
        let file = write_png(&picture(), &parameters("a house")).unwrap();
        let bare = with_parameters(&file, None).unwrap();
        assert!(bare.len() < file.len() && !bare.windows(5).any(|window| window == b"house"));
        let (back, text) = read_png(&bare).unwrap();
        assert_eq!((back.rgb, text.as_str()), (picture().rgb, ""));
        for prompt in ["a house", "雪の家"] {
            let again = with_parameters(&bare, Some(&parameters(prompt))).unwrap();
            assert_eq!(again, write_png(&picture(), &parameters(prompt)).unwrap());
            assert_eq!(with_parameters(&again, None).unwrap(), bare);
        }
        for damaged in [&file[..20], &file[..file.len() - 1], b"no png"] {
            assert!(with_parameters(damaged, None).is_err());
        }
    }

    #[test]
    fn every_format_decodes_and_the_lossless_ones_to_the_same_pixels() {
        let file = write_png(&picture(), "a").unwrap();
        for format in [Format::Png, Format::Jpeg, Format::Webp] {
            let file = transcode(&file, Encoding { format, quality: 50 }).unwrap();
            let back = image::load_from_memory(&file).unwrap().into_rgb8();
            assert_eq!(back.dimensions(), (16, 8));
            assert_eq!(back.into_raw() == picture().rgb, format != Format::Jpeg, "{format:?}");
        }
        let jpeg = Encoding { format: Format::Jpeg, quality: 50 };
        assert!(transcode(b"no png", jpeg).is_err() && transcode(&file[..60], jpeg).is_err());
    }
}
