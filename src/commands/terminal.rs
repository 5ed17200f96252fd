//! A picture as text: two pixels to a character cell, in 24-bit colour.
//!
//! Own code because the crates that do this either bring LGPL or GPL code into the binary or ask the
//! terminal questions, and wait for ever where none answers. Every terminal that shows true colour
//! shows this, and nothing is asked.

use std::io::IsTerminal;

use image::RgbImage;

/// The most cells across: a 64-pixel picture takes 64.
const MAX_WIDTH: u32 = 64;

/// Whether stdout is a terminal that says that it shows 24-bit colour.
pub fn can_show() -> bool {
    std::io::stdout().is_terminal() && true_colour(|name| std::env::var(name).unwrap_or_default())
}

/// By the convention of `COLORTERM`, and by name for those that keep it to themselves over ssh.
fn true_colour(variable: impl Fn(&str) -> String) -> bool {
    let terminal = variable("TERM").to_lowercase();
    ["truecolor", "24bit"].contains(&variable("COLORTERM").as_str())
        || ["kitty", "ghostty", "wezterm", "alacritty", "direct"].iter().any(|name| terminal.contains(name))
}

/// The picture in lines of upper half blocks: foreground is the upper pixel, background the lower one.
pub fn half_blocks(picture: &RgbImage) -> String {
    let width = picture.width().clamp(1, MAX_WIDTH);
    let height = (picture.height() * width).div_ceil(picture.width().max(1)).max(1);
    let small = image::imageops::thumbnail(picture, width, height);
    let mut text = String::new();
    for y in (0..height).step_by(2) {
        for x in 0..width {
            let [r, g, b] = small.get_pixel(x, y).0;
            text += &format!("\x1b[38;2;{r};{g};{b}m");
            if y + 1 < height {
                let [r, g, b] = small.get_pixel(x, y + 1).0;
                text += &format!("\x1b[48;2;{r};{g};{b}m");
            }
            text.push('▀');
        }
        text += "\x1b[0m\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pixels_to_a_cell_and_never_wider_than_asked() {
        let picture = RgbImage::from_fn(1, 2, |_, y| image::Rgb([10 + y as u8, 0, 0]));
        assert_eq!(half_blocks(&picture), "\x1b[38;2;10;0;0m\x1b[48;2;11;0;0m▀\x1b[0m\n");
        let wide = half_blocks(&RgbImage::new(512, 256));
        assert_eq!((wide.lines().count(), wide.matches('▀').count()), (16, 16 * 64));
        assert_eq!(half_blocks(&RgbImage::new(3, 3)).lines().count(), 2, "an odd last row stands alone");
    }

    #[test]
    fn terminals_that_say_so_are_believed() {
        let terminal = |term: &'static str, colour: &'static str| {
            move |name: &str| if name == "TERM" { term.to_owned() } else { colour.to_owned() }
        };
        assert!(
            true_colour(terminal("xterm-256color", "truecolor")) && true_colour(terminal("xterm-kitty", ""))
        );
        assert!(!true_colour(terminal("xterm-256color", "")) && !true_colour(terminal("dumb", "")));
    }
}
