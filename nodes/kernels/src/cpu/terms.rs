//! What is added to products on their way out.

/// What is added to a product.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms<'a> {
    /// `[O]`.
    pub bias: Option<&'a [f32]>,
    /// `[images, O]`, to every pixel of an image.
    pub image: Option<&'a [f32]>,
    /// Of the result's shape.
    pub residual: Option<&'a [f32]>,
}

/// What every row of an image is shifted by: bias and the image's term, `[images or 1, O]`.
pub(super) fn shifts(terms: Terms<'_>, outputs: usize) -> Option<Vec<f32>> {
    match (terms.bias, terms.image) {
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => Some(one.to_vec()),
        (Some(bias), Some(images)) => Some(
            images
                .chunks_exact(outputs)
                .flat_map(|image| image.iter().zip(bias).map(|(a, b)| a + b))
                .collect(),
        ),
    }
}
